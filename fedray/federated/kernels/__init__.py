"""Compiled inner loops. Clients are independent, each is worked through by itself in one fixed order, so results do
not depend on packing; tests hold each kernel to the naive loop within 1e-5."""
