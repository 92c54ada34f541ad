"""Optimizers that are more than a name: AdamW with 8-bit state, by bitsandbytes.

State m, v is stored in 8 bits, in blocks of 256 values with a scale each (Dettmers et
al. 2022, arXiv:2110.02861): a quarter of the memory, and updates a little off. Tensors
below 4096 values keep 32-bit state, which is most of a small adapter on a small model.
"""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from loralab.config import ExperimentConfig
from loralab.errors import ConfigError
from loralab.models.numerics import choose_numerics
from loralab.models.quiet import quiet_libraries

EIGHT_BIT = ("adamw_8bit", "paged_adamw_8bit")
FIRST_VERSION = (0, 50)
SMALLEST = 4096
"""Values of the smallest tensor whose state is 8-bit (bitsandbytes' default)."""

logger = logging.getLogger(__name__)


def check_optimizer(config: ExperimentConfig) -> None:
    """Refuse an optimizer that does not work here, before anything is loaded.

    Raises:
        ConfigError: bitsandbytes is missing or too old, or the device has no such
            optimizer.
    """
    optim = config.training.optim
    if optim not in EIGHT_BIT:
        return
    where, install = "training.optim", "pip install 'loralab[bitsandbytes]'"
    try:
        found = version("bitsandbytes")
    except PackageNotFoundError:
        raise ConfigError(
            f"{optim} needs the package bitsandbytes, which is not here",
            where=where,
            fix=f"{install}, or set training.optim=adamw_torch",
        ) from None
    if tuple(int(part) for part in found.split(".")[:2]) < FIRST_VERSION:
        raise ConfigError(
            f"{optim} needs bitsandbytes 0.50, and {found} is installed",
            where=where,
            why="earlier versions have no 8-bit optimizer on a CPU",
            fix=install,
        )
    device = choose_numerics(config.model.device, config.model.dtype).device
    if device == "mps" or (device == "cpu" and optim.startswith("paged")):
        other = "adamw_torch" if device == "mps" else "adamw_8bit"
        raise ConfigError(
            f"{optim} does not work on the device {device}",
            where=where,
            why="bitsandbytes pages between GPU and CPU memory, and has no 8-bit "
            "kernel for mps",
            fix=f"set training.optim={other}",
        )
    _forget_modules()


def _forget_modules() -> None:
    """Empty bitsandbytes' global list of modules.

    transformers enters every embedding of a model that it trains; the list would keep
    the models of all earlier runs of this process alive.
    """
    with quiet_libraries():
        optim: Any = import_module("bitsandbytes.optim")
    optim.GlobalOptimManager.get_instance().initialize()


def eight_bit_share(model: Any) -> float:
    """Return the share of trained values whose state an 8-bit optimizer quantizes."""
    sizes = [p.numel() for p in model.parameters() if p.requires_grad]
    return float(sum(n for n in sizes if n >= SMALLEST) / sum(sizes))


def note_small_tensors(optim: str, model: Any) -> None:
    """Log how much of an 8-bit optimizer's state is 8-bit; a warning if little is."""
    if optim in EIGHT_BIT:
        share = eight_bit_share(model)
        level = logging.INFO if share >= 0.5 else logging.WARNING
        text = "%s: %.1f %% of the trained values have 8-bit state; the others are in "
        text += "tensors below %d values and keep 32 bits"
        logger.log(level, text, optim, 100 * share, SMALLEST)
