r"""PEFT's configuration of a plain LoRA: which rank and scale each module has.

PEFT 0.21 (tuners/lora/model.py, utils/other.py:get_pattern_key) finds a module's rank
and alpha like this: the first key of ``rank_pattern`` (``alpha_pattern``) for which
``(.*\.)?(key)$`` matches the module's path, else ``r`` (``lora_alpha``); the scale is
alpha / rank, or alpha / √rank with ``use_rslora``. A key that earlier versions did not
know is absent from their files, and means what it means when it is off. What is more
than s·B·A (DoRA's magnitudes, biases, a base changed at the start) is refused: it is
not in the factors.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralab.errors import AdapterError

CONFIG = "adapter_config.json"
NOTE = "loralab.json"
"""Beside an adapter of ours: its ``base.fingerprint`` is that of the base's weights."""
MERGED = "merge.json"
"""Beside a merged adapter: how it was made, and of which adapters and bases."""
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
            f"{CONFIG} cannot be read",
            where=str(folder),
            why=str(error),
            fix="name a run, or a folder that PEFT's save_pretrained wrote",
        ) from None
    if kind != "LORA":
        raise AdapterError(
            f"the adapter is of the kind {kind}, and only LORA is a plain s·B·A",
            where=str(file),
        )
    _check_plain(config, file)
    return dict(config)


def _check_plain(config: Mapping[str, Any], file: Path) -> None:
    """Refuse by name what makes an update more than s·B·A."""
    for key in NOT_PLAIN:
        if config.get(key):
            raise AdapterError(
                f"{key} is on, and only a plain LoRA is s·B·A",
                where=str(file),
                why="its effect is not in A and B alone, so their spectrum is not its",
            )
    if config.get("bias", "none") != "none":
        raise AdapterError(
            f"bias={config['bias']}: the adapter trained biases too",
            where=str(file),
            why="they are no s·B·A, and their difference to the base is not stored",
        )
    start = str(config.get("init_lora_weights"))
    if start.lower().startswith(CHANGES_BASE):  # PEFT takes OLoRA too
        raise AdapterError(
            f"init_lora_weights={start} changed the base's weights at the start",
            where=str(file),
            why="s·B·A is then not the difference to the base that is loaded",
            fix="save it with PEFT's path_initial_model_for_weight_conversion",
        )


def scale_of(config: Mapping[str, Any], module: str, rank: int, file: Path) -> float:
    """Return s of a module; its stored rank must be the configured one.

    Args:
        config: PEFT's.
        module: Path in the base.
        rank: As it is stored.
        file: Of the tensors, for the error.

    Raises:
        AdapterError: no rank or alpha, another rank, or a scale that is not positive.
    """
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


def plain_config(
    given: Mapping[str, tuple[int, float]], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the configuration that gives plain PEFT these ranks and scales.

    Every adapted module is named in full; the scale is alpha / rank, never rsLoRA.

    Args:
        given: Module path -> (rank, scale); modules of rank 0 are not adapted.
        config: Whose other keys (base, task) are kept.

    Raises:
        AdapterError: no module has a direction.
    """
    pairs = {
        name: (rank, alpha_of(s, rank)) for name, (rank, s) in given.items() if rank
    }
    if not pairs:
        raise AdapterError("no direction of any module is left to write")
    return {
        **config,
        **rank_settings(pairs),
        "peft_type": "LORA",
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": list(pairs),
        "exclude_modules": None,
        "layers_to_transform": None,
        "layers_pattern": None,
    }
