"""Artefacts: a model in a storage format, the route to it, and what it kept."""
