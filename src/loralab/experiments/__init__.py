"""Sweeps and studies: many runs from one question, and what they say."""
