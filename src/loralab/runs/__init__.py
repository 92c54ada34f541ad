"""The run directory: identity, atomic writes, status, environment, reading back."""

from loralab.runs.run import FORMAT_VERSION, Run, find_run, list_runs

__all__ = ["FORMAT_VERSION", "Run", "find_run", "list_runs"]
