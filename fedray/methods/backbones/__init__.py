"""One paper per file; each makes a `Method`."""
