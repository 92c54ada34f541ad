"""A head that is written, not trained: the text tower's features of the classes' names.

    t_c = n( mean over templates of n(text(prompt)) ),   n(x) = x / ‖x‖
    logits_c = e^s · ⟨n(v), t_c⟩,   v = what the vision tower says of the image

(CLIP: Radford et al. 2021, arXiv:2103.00020, section 3.1.4.) e^s·t is all that is kept
of the text tower: a constant, neither trained nor counted. So an adapter of the vision
tower has no weights of a head, and the heads of several tasks are written anew by the
one base (as task arithmetic has it: Ilharco et al. 2023, arXiv:2212.04089).

Shape suffixes: B images, C classes, N prompts, P projection, T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from loralab.errors import DataError, ModelError
from loralab.models.processors import load_tokenizer
from loralab.models.quiet import quiet_libraries
from loralab.models.source import Source, weight_files

AT_ONCE = 256
"""Prompts of a batch."""


class TextHead(nn.Module):
    """Logits of images from the features of the classes' names, in fp32.

    Attributes:
        weight: e^s · t, [C, P] fp32; a buffer.
    """

    weight: Tensor

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(classes, width, dtype=torch.float32))

    def forward(self, features_BP: Tensor) -> Tensor:
        """Return the logits, [B, C] fp32."""
        return linear(normalize(features_BP.float(), dim=-1), self.weight)


def check_towers(folder: Path, path: str) -> None:
    """Refuse a model that has no text tower beside the one that sees.

    Raises:
        ModelError: it is no CLIP.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "clip":
        raise ModelError(
            "has no text tower that could name classes",
            where=path,
            why=f"it is a {config.get('model_type')}, and not a CLIP",
            fix="choose model=clip-vit-b32; or task.name=image-classification, whose "
            "head is trained",
        )


def text_weights(
    source: Source, classes: Mapping[str, Sequence[str]], path: str, device: str
) -> Tensor:
    """Return what a text tower says of classes: e^s · t, [C, P] fp32, on the CPU.

    Args:
        source: Where the model with both towers is.
        classes: Class -> its prompts.
        path: As configured, for errors.
        device: Where it computes, in fp32 whatever the base is in.

    Raises:
        ModelError: the tower cannot be loaded, or lacks weights.
        DataError: a prompt is longer than the tower can read.
    """
    tower = _tower(source, path).to(device)
    tokenizer = load_tokenizer(source, path)
    prompts = [prompt for own in classes.values() for prompt in own]
    limit = tower.config.max_position_embeddings
    for prompt in prompts:
        if (length := len(tokenizer(prompt).input_ids)) > limit:
            raise DataError(
                f"a prompt has {length} tokens, and {path} reads {limit}",
                where="task.params",
                why=f"it would be cut: {prompt!r}",
                fix="shorten the class's name with task.params.names, or the template",
            )
    parts = [prompts[k : k + AT_ONCE] for k in range(0, len(prompts), AT_ONCE)]
    with torch.inference_mode():
        features_NP = torch.cat([_read(tower, tokenizer, part) for part in parts])
        each = torch.split(features_NP, [len(own) for own in classes.values()])
        text_CP = normalize(torch.stack([own.mean(0) for own in each]), dim=-1)
    return (_scale(source.folder, path).exp() * text_CP.cpu()).clone()


def _read(tower: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return the features of prompts, each of length 1, [N, P]."""
    made = tokenizer(list(prompts), padding=True, return_tensors="pt")
    given = {
        name: made[name].to(tower.device) for name in ("input_ids", "attention_mask")
    }
    return normalize(tower(**given).text_embeds, dim=-1)


def _tower(source: Source, path: str) -> Any:
    """Return the text tower with its projection, in fp32."""
    from transformers import CLIPTextModelWithProjection

    try:
        with quiet_libraries():
            tower, told = CLIPTextModelWithProjection.from_pretrained(
                source.load_from,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                dtype=torch.float32,
            )
    except Exception as error:  # corrupt files surface as many unrelated kinds
        why = str(error).strip().split("\n")[0]
        raise ModelError(
            "the text tower cannot be loaded", where=path, why=why
        ) from None
    if told["missing_keys"]:
        raise ModelError(
            f"the text tower lacks weights, such as {sorted(told['missing_keys'])[0]}",
            where=path,
            why="they would be random",
        )
    return tower.eval()


def _scale(folder: Path, path: str) -> Tensor:
    """Return s, the logarithm of what cosines are multiplied with."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, "pt") as opened:
            if "logit_scale" in opened.keys():  # noqa: SIM118
                found: Tensor = opened.get_tensor("logit_scale").float()
                return found
    raise ModelError("no logit_scale among the weights", where=path)
