"""DINOv2's ViT-S/14 out of the ONNX file of a saliency model, as transformers has it.

The initializers of the backbone carry transformers' names of old, but for those that
the exporter folded: the weights of products are known by the node that uses them, and
stand transposed; the positions are two constants, of the class token and of the 37 x 37
patches. The mask token, of no use but in DINOv2's own training, is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralab.errors import ModelError

RENAMED = {
    "backbone.": "",
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of ImageNet's channels: what the package's own code normalises by."""


def convert(file: Path, target: Path) -> None:
    """Write the backbone as a folder of transformers'.

    Args:
        file: The ONNX file.
        target: An existing directory.

    Raises:
        ModelError: the package that reads ONNX is missing, or it is another model.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import Dinov2Config, Dinov2Model, ViTImageProcessorPil

    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6,
        image_size=518, patch_size=14, architectures=["Dinov2Model"],
        use_mask_token=False,
    )  # fmt: skip
    found = {
        name: torch.from_numpy(array.copy()) for name, array in _read(file).items()
    }
    with torch.device("meta"):
        wanted = Dinov2Model(config).state_dict()
    if {k: v.shape for k, v in found.items()} != {
        k: v.shape for k, v in wanted.items()
    }:
        raise ModelError("is not the ViT-S/14 that was expected", where=file.name)
    save_file(found, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    ViTImageProcessorPil(
        size={"height": 224, "width": 224}, resample=3, patch_size=14,
        image_mean=MEAN, image_std=STD,
    ).save_pretrained(target)  # fmt: skip


def _name(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _read(file: Path) -> dict[str, Any]:
    """Return the backbone's tensors by transformers' names."""
    import numpy as np

    try:
        import onnx
        from onnx.numpy_helper import to_array
    except ImportError:
        raise ModelError(
            "the embedded ViT is read with the package onnx, which is not installed",
            where="embedded:vit-s14",
            fix="pip install 'loralab[onnx]', or choose a vision model of the hub",
        ) from None

    graph = onnx.load(str(file)).graph
    held = {one.name: to_array(one) for one in graph.initializer}
    found = {_name(n): x for n, x in held.items() if n.startswith("backbone.")}
    places = {}
    for node in graph.node:
        for folded in (x for x in node.input if x.startswith("onnx::") and x in held):
            if node.op_type == "MatMul":
                path = node.name.strip("/").rpartition("/")[0].replace("/", ".")
                found[_name(f"{path}.weight")] = held[folded].T
            elif held[folded].ndim == 3:
                places[node.op_type] = held[folded]
    both = [places["Concat"], places["Reshape"]]
    found["embeddings.position_embeddings"] = np.concatenate(both, axis=1)
    return found
