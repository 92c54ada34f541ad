"""Merge methods by name, one file each."""
