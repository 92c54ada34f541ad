"""Data sources: one file each; `read(params)` yields `RawRow`."""
