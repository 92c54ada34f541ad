"""From a run to answers."""
