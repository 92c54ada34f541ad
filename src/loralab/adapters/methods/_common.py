"""Reasons that several methods share."""

from __future__ import annotations

from loralab.adapters.site import Site
from loralab.errors import AdapterError
from loralab.models.architecture import kind_of

OWN_WEIGHTS = "it trains the base's own weights, and a quantized one has none to train"
NO_PACKING = "its virtual tokens stand before the whole sequence, not before each row"
NO_PATCHES = "its virtual tokens are embeddings of text, and an image has patches"
NOT_LINEAR = "it is no change of a weight, but more positions of the sequence"
NO_ADAPTER = "it leaves no adapter, only other values of the model's own tensors"
NO_KERNEL = "PEFT multiplies it with float weights, and has no quantized layer"


def check_prompt(site: Site) -> None:
    """Refuse a learnt prompt where a decoder classifies.

    Raises:
        AdapterError: it does.
    """
    loaded = site.loaded
    if loaded.head == "sequence-classification" and kind_of(loaded.facts) == "decoder":
        raise AdapterError(
            "a learnt prompt cannot stand before a decoder that classifies",
            where="peft.name",
            why="transformers finds the last token by the ids, which a prompt has not; "
            "it would read padding",
            fix="choose lora, or an encoder",
        )
