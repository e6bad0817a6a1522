"""What a score is: ranks, metrics, controls, tables."""
