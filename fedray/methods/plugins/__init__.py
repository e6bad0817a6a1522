"""One paper per file; each turns a `Method` into another."""
