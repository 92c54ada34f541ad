"""Reasons that several methods share."""

from __future__ import annotations

OWN_WEIGHTS = "it trains the base's own weights, and a quantized one has none to train"
NO_PACKING = "its virtual tokens stand before the whole sequence, not before each row"
NO_PATCHES = "its virtual tokens are embeddings of text, and an image has patches"
NOT_LINEAR = "it is no change of a weight, but more positions of the sequence"
NO_ADAPTER = "it leaves no adapter, only other values of the model's own tensors"
NO_KERNEL = "PEFT multiplies it with float weights, and has no quantized layer"
