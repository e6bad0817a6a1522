"""`make bench`: seconds per stage, ratios to the naive loop, Ray's overhead, memory. A table and bench.json."""
