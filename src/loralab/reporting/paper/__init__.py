"""A paper whose every number is read from a committed result when it is built."""
