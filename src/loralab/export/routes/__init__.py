"""Routes of an adapter into a quantized base, one a file."""
