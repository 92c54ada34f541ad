"""Publishing targets, one a file."""
