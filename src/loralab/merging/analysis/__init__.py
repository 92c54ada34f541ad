"""Adapters compared before they are merged."""
