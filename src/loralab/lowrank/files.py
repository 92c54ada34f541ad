r"""Plain PEFT LoRA folders to factors and back, without PEFT and without a base.

PEFT 0.21 (tuners/lora/model.py, utils/other.py:get_pattern_key) finds a module's rank
and alpha like this: the first key of ``rank_pattern`` (``alpha_pattern``) for which
``(.*\.)?(key)$`` matches the module's path, else ``r`` (``lora_alpha``); the scale is
alpha / rank, or alpha / √rank with ``use_rslora``. What is more than s·B·A (DoRA's
magnitudes, biases, a base changed at the start) is refused: it is not in the factors.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loralab.errors import AdapterError
from loralab.lowrank.factors import Factors
from loralab.runs.files import atomic_directory

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
NOT_PLAIN = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
)
"""Keys of PEFT's configuration with which an update is more than s·B·A."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract from the base's weights: B·A then is no difference."""


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """A LoRA adapter as it stands on disk.

    Attributes:
        factors: Module path in the base -> its update.
        rest: Tensors that are saved in full (a head), by their stored names.
        config: PEFT's configuration as it was read.
    """

    factors: dict[str, Factors]
    rest: dict[str, Tensor]
    config: dict[str, Any]


def pattern_value(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """Return a module's value of a ``rank_pattern`` or ``alpha_pattern``.

    Raises:
        AdapterError: a key is no regular expression.
    """
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise AdapterError(
                f"{key!r} is no regular expression", where=CONFIG, why=str(error)
            ) from None
    return default


def alpha_of(scale: float, rank: int) -> float:
    """Return the alpha whose quotient alpha / rank is `scale`, or nearest to it."""
    near = scale * rank
    around = (near, math.nextafter(near, math.inf), math.nextafter(near, 0.0))
    return min(around, key=lambda alpha: abs(alpha / rank - scale))


def rank_settings(given: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    """Return the keys of PEFT's configuration that give each module its rank and alpha.

    The most frequent pair is ``r`` and ``lora_alpha``; every other module stands in
    both patterns, under its full path (``^`` keeps it from matching the end of
    another's).

    Args:
        given: Module path -> (rank, alpha).
    """
    (rank, alpha), _ = Counter(given.values()).most_common(1)[0]
    others = {name: pair for name, pair in given.items() if pair != (rank, alpha)}
    keys = {name: f"^{re.escape(name)}" for name in others}
    return {
        "r": rank,
        "lora_alpha": _whole(alpha),
        "rank_pattern": {keys[name]: pair[0] for name, pair in others.items()},
        "alpha_pattern": {keys[name]: _whole(pair[1]) for name, pair in others.items()},
    }


def _whole(value: float) -> float:
    """Return an int where the float is one, as PEFT's own files have it."""
    return int(value) if value == int(value) else value


def read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a plain LoRA folder.

    Raises:
        AdapterError: missing or broken, another PEFT method, or more than s·B·A.
    """
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(
            f"{CONFIG} cannot be read", where=str(folder), why=str(error)
        ) from None
    if kind != "LORA":
        raise AdapterError(
            f"the adapter is of the kind {kind}, and only LORA is a plain s·B·A",
            where=str(file),
        )
    for key in NOT_PLAIN:
        if config.get(key):
            raise AdapterError(
                f"{key} is on, and only a plain LoRA is s·B·A",
                where=str(file),
                why="its effect is not in A and B alone, so their spectrum is not its",
            )
    start = str(config.get("init_lora_weights"))
    if start.startswith(CHANGES_BASE):
        raise AdapterError(
            f"init_lora_weights={start} changed the base's weights at the start",
            where=str(file),
            why="s·B·A is then not the difference to the base that is loaded",
            fix="save it with PEFT's path_initial_model_for_weight_conversion",
        )
    return dict(config)


def _scale(config: Mapping[str, Any], module: str, rank: int, file: Path) -> float:
    """Return s of a module; its stored rank must be the configured one."""
    try:
        said = int(pattern_value(config.get("rank_pattern") or {}, module, config["r"]))
        alpha = pattern_value(
            config.get("alpha_pattern") or {}, module, config["lora_alpha"]
        )
        root = math.sqrt(rank) if config.get("use_rslora") else rank
        scale = float(alpha) / root
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise AdapterError(
            f"no rank or alpha for {module}", where=str(file), why=repr(error)
        ) from None
    if said != rank:
        raise AdapterError(
            f"{module} is stored with rank {rank}, and {CONFIG} says {said}",
            where=str(file),
            fix="the two files belong to different adapters",
        )
    if not scale > 0:
        raise AdapterError(f"the scale of {module} is {scale}", where=str(file))
    return scale


def _pair(
    config: Mapping[str, Any], module: str, found: Mapping[str, Tensor], file: Path
) -> Factors:
    """Return the factors of a module, checked against each other."""
    if set(found) != {"A", "B"}:
        missing = "B" if "A" in found else "A"
        raise AdapterError(f"{module} has no lora_{missing}.weight", where=str(file))
    A, B = found["A"], found["B"]
    if A.ndim != 2 or B.ndim != 2 or A.shape[0] != B.shape[1] or not A.shape[0]:
        raise AdapterError(
            f"{module}: A is {list(A.shape)} and B {list(B.shape)}, "
            "which make no rank × in and out × rank",
            where=str(file),
        )
    if not (A.isfinite().all() and B.isfinite().all()):
        raise AdapterError(f"{module} holds NaN or infinite numbers", where=str(file))
    exact = torch.float64 if torch.float64 in (A.dtype, B.dtype) else torch.float32
    scale = _scale(config, module, A.shape[0], file)
    return Factors(A.to(exact), B.to(exact), scale)


def read_adapter(folder: Path) -> StoredAdapter:
    """Return the factors of a plain PEFT LoRA folder; no base and no PEFT is loaded.

    Factors are float32 (float64 if they are stored so); tensors saved in full keep
    their dtype.

    Raises:
        AdapterError: a file is missing or broken, the adapter is not plain LoRA, or
            tensors and configuration do not belong together.
    """
    folder = Path(folder)
    config, file = read_config(folder), folder / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            "not safetensors, or not there", where=str(file), why=str(error)
        ) from None
    pairs: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(rf"{re.escape(PREFIX)}(.+)\.lora_([AB])\.weight", name)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = tensor
        elif ".lora_" in name:
            raise AdapterError(
                f"{name} is no lora_A.weight or lora_B.weight of a linear layer",
                where=str(file),
            )
        else:
            rest[name] = tensor
    if not pairs:
        raise AdapterError("the adapter has no lora_A and lora_B", where=str(file))
    factors = {name: _pair(config, name, pairs[name], file) for name in sorted(pairs)}
    return StoredAdapter(factors, rest, config)


def plain_config(stored: StoredAdapter) -> dict[str, Any]:
    """Return the configuration that gives plain PEFT these factors and scales.

    Every adapted module is named in full; the scale is alpha / rank, never rsLoRA.

    Raises:
        AdapterError: no module has a direction.
    """
    kept = {name: f for name, f in stored.factors.items() if f.rank}
    if not kept:
        raise AdapterError("no direction of any module is left to write")
    pairs = {name: (f.rank, alpha_of(f.scale, f.rank)) for name, f in kept.items()}
    return {
        **stored.config,
        **rank_settings(pairs),
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": list(kept),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }


def write_adapter(
    folder: Path, stored: StoredAdapter, beside: Path | None = None
) -> None:
    """Write a plain PEFT LoRA folder, whole or not at all.

    Modules of rank 0 are left out: their update is zero.

    Args:
        folder: Replaced if it exists.
        stored: Factors, tensors saved in full, and a configuration whose other keys
            (base, task) are kept.
        beside: An adapter folder whose other files (tokenizer, note) are copied.

    Raises:
        AdapterError: no module has a direction.
    """
    config = plain_config(stored)
    tensors = dict(stored.rest)
    for name, factors in stored.factors.items():
        if factors.rank:
            tensors[f"{PREFIX}{name}.lora_A.weight"] = factors.A.contiguous()
            tensors[f"{PREFIX}{name}.lora_B.weight"] = factors.B.contiguous()
    with atomic_directory(Path(folder)) as temporary:
        for file in sorted(beside.iterdir()) if beside else ():
            if file.is_file() and file.name not in (CONFIG, WEIGHTS):
                shutil.copyfile(file, temporary / file.name)
        text = json.dumps(config, indent=2, sort_keys=True)
        (temporary / CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
