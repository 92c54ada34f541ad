"""The command line: one verb, one file. Only this room prints."""
