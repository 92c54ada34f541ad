"""The trainer, its callbacks, guards and checkpoints."""
