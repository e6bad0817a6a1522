"""Search for settings: the space, what is tried next, and trials on Ray Tune."""
