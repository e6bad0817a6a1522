"""The engine: read `rounds.py` first."""
