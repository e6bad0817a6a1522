"""The Ray shell: the only package besides `search` that imports ray. Actors are thin; the work is in `federated`."""
