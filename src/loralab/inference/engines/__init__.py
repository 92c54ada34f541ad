"""Engines, one a file: what runs a stored model."""
