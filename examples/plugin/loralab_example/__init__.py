"""A merge method, a rank strategy and a PEFT method for loralab, one file each."""
