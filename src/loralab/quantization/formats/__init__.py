"""Storage formats, one a file; see `loralab.quantization.storage`."""
