"""Sets of our own: written passages, and passages made from a seed."""
