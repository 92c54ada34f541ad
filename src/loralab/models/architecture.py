r"""Facts about architectures, and which modules an adapter goes on.

A pattern is a regular expression that must match the end of a module's path, from a dot
on: ``q_proj`` matches ``model.layers.0.self_attn.q_proj``, and
``attention\.output\.dense`` tells BERT's attention output from its MLP output.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loralab.errors import AdapterError, nearest

PRESETS = ("attention", "qv", "mlp", "all-linear")


@dataclass(frozen=True)
class Family:
    """The patterns of a family of architectures, by preset."""

    attention: tuple[str, ...]
    qv: tuple[str, ...]
    mlp: tuple[str, ...]


_LLAMA = Family(
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("q_proj", "v_proj"),
    ("gate_proj", "up_proj", "down_proj"),
)
_BERT = Family(
    ("query", "key", "value", r"attention\.output\.dense"),
    ("query", "value"),
    (r"intermediate\.dense", r"layer\.\d+\.output\.dense"),
)
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "xlm-roberta": _BERT,
}
"""transformers' ``model_type`` -> patterns."""


@dataclass(frozen=True)
class Facts:
    """What is known of a loaded model.

    Attributes:
        model_type: transformers' name of the architecture.
        parameters: All parameters of the base, tied ones once.
        layers: Hidden layers.
        hidden: Width of the residual stream.
        vocabulary: Rows of the input embedding.
        linear: Paths of the linear modules outside the head, in order.
    """

    model_type: str
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    linear: tuple[str, ...]


def facts_of(model: Any, new_modules: Sequence[str] = ()) -> Facts:
    """Return the facts of a transformers model.

    Args:
        model: A `PreTrainedModel` without adapter.
        new_modules: Newly initialised modules (a head); no targets of an adapter.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    linear = tuple(
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and not any(name == new or name.startswith(f"{new}.") for new in new_modules)
    )
    config = model.config.get_text_config()
    return Facts(
        model_type=config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        vocabulary=config.vocab_size,
        linear=linear,
    )


def target_patterns(targets: str | Sequence[str], facts: Facts) -> list[str]:
    """Return the patterns of a preset, or the user's own.

    Raises:
        AdapterError: the preset is unknown, or this architecture has no entry for it.
    """
    if not isinstance(targets, str):
        return list(targets)
    if targets == "all-linear":
        # the last parts of the paths that are unique to what they name
        return sorted({re.escape(_tail(name)) for name in facts.linear})
    if targets not in PRESETS:
        raise AdapterError(
            f"no target preset {targets!r}; {nearest(targets, PRESETS)}",
            where="peft.params.target_modules",
            fix="write a preset, or a list of module names: [q_proj, v_proj]",
        )
    family = FAMILIES.get(facts.model_type)
    if family is None:
        names = sorted({_tail(name) for name in facts.linear})
        raise AdapterError(
            f"preset {targets!r} is not known for model type {facts.model_type!r}",
            where="peft.params.target_modules",
            fix=f"write all-linear, or choose from: {', '.join(names)}",
        )
    return list(getattr(family, targets))


def _tail(path: str) -> str:
    """Return a path's last part, with what stands before it when that is no index."""
    parts = path.split(".")
    generic = parts[-1] in ("dense", "fc", "proj", "linear")
    return ".".join(p for p in parts[-2:] if not p.isdigit()) if generic else parts[-1]


def match_targets(patterns: Sequence[str], facts: Facts) -> dict[str, list[str]]:
    """Return the modules that each pattern matches.

    Raises:
        AdapterError: a pattern is no regular expression or matches nothing. PEFT would
            pass over one that matches nothing as long as another matches.
    """
    found: dict[str, list[str]] = {}
    for pattern in patterns:
        try:
            compiled = re.compile(rf"(?:.*\.)?(?:{pattern})")
        except re.error as error:
            raise AdapterError(
                f"{pattern!r} is no regular expression: {error}",
                where="peft.params.target_modules",
            ) from None
        found[pattern] = [name for name in facts.linear if compiled.fullmatch(name)]
        if not found[pattern]:
            names = {_tail(name) for name in facts.linear}
            raise AdapterError(
                f"{pattern!r} matches no linear module; {nearest(pattern, names)}",
                where="peft.params.target_modules",
            )
    return found


def peft_targets(patterns: Sequence[str]) -> list[str] | str:
    """Return patterns as PEFT takes them: plain names as a list, else one regex."""
    if all(re.fullmatch(r"\w+", pattern) for pattern in patterns):
        return list(patterns)
    return rf"(?:.*\.)?(?:{'|'.join(patterns)})"
