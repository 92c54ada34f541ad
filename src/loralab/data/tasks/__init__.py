"""Tasks: one file each; a class that fulfils `DataPreprocessor`."""
