"""Layers as plain functions on tensors."""
