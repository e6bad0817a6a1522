"""Sources, cleaning, splits, negatives and what clients train on."""
