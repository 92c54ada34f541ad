"""Numerics of storage: a weight in few bits, and how many bytes that is."""
