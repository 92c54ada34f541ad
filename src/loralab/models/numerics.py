"""Device and dtype: one explicit choice each, with its reason; and seeds.

Under bf16 and fp16 the base's weights and the matrix products are in that dtype
(autocast), while every trained weight, and its optimizer state, is fp32. So a small
update is never rounded away, and training, evaluation and inference compute alike.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loralab.errors import ModelError

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Numerics:
    """Where and in what a model computes, and why.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        dtype: ``fp32``, ``bf16`` or ``fp16``.
        reason: Why this dtype, in a few words.
    """

    device: str
    dtype: str
    reason: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of base weights."""
        import torch

        found: torch.dtype = getattr(torch, DTYPES[self.dtype])
        return found

    def autocast(self) -> torch.autocast:
        """Return the context in which every forward pass runs."""
        import torch

        on = self.dtype != "fp32"
        dtype = self.torch_dtype if on else None
        return torch.autocast(self.device, dtype=dtype, enabled=on)


def _available(device: str) -> bool:
    import torch

    if device == "cuda":
        return torch.cuda.is_available()
    return device == "cpu" or torch.backends.mps.is_available()


def _computes_bf16(device: str) -> str:
    """Return what computes bf16 on the device, or an empty string."""
    import torch

    if device == "cuda":
        return "the GPU" if torch.cuda.is_bf16_supported(False) else ""
    if device == "mps":
        return ""
    found = torch.cpu.get_capabilities()
    fast = [x for x in ("amx_bf16", "avx512_bf16", "bf16") if found.get(x)]
    return f"the CPU ({fast[0]})" if fast else ""


def choose_numerics(device: str, dtype: str) -> Numerics:
    """Return the device and dtype that `best` stands for, or check the explicit ones.

    Raises:
        ModelError: the device is not there, or cannot compute in the dtype.
    """
    if device == "best":
        device = next(d for d in ("cuda", "mps", "cpu") if _available(d))
    if not _available(device):
        raise ModelError(
            f"this machine has no {device}", where="model.device", fix="set it to best"
        )
    return decide(device, dtype, _computes_bf16(device))


def decide(device: str, dtype: str, fast: str) -> Numerics:
    """Return the dtype on a device; nothing is asked of the machine.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        dtype: As configured.
        fast: What computes bf16 there; empty if nothing does.

    Raises:
        ModelError: fp16 on a CPU.
    """
    if dtype == "fp16" and device == "cpu":
        raise ModelError(
            "fp16 is not computed on a CPU", where="model.dtype", fix="set it to best"
        )
    if dtype != "best":
        return Numerics(device, dtype, "as configured")
    if fast:
        return Numerics(device, "bf16", f"{fast} computes in bf16")
    return Numerics(device, "fp32", f"the {device} has no fast bf16")


def check_trains(numerics: Numerics) -> None:
    """Refuse a dtype that answers, and does not train.

    Raises:
        ModelError: fp16, whose small gradients are zero.
    """
    if numerics.dtype == "fp16":
        raise ModelError(
            "training in fp16 needs loss scaling, which is not built yet",
            where="model.dtype",
            why="gradients below 6e-8 would be zero",
            fix="set it to bf16 or fp32; fp16 is for evaluation and inference",
        )


def use_tf32() -> None:
    """Let CUDA multiply fp32 matrices in TF32 where the GPU has it (Ampere on).

    Inputs are rounded to 10 bits of mantissa, more than bf16's 7.
    """
    import torch

    torch.set_float32_matmul_precision("high")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch, and ask torch for deterministic algorithms.

    Called before anything is initialised: the head of a classifier and the adapter
    draw from these generators.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # else it writes NaN into all new memory, 4 to 6 % of a small model's step
    of: Any = torch.utils.deterministic
    of.fill_uninitialized_memory = False
