"""A linear module on affine codes, for training an adapter beside it or for use.

    y = x W̃ᵀ + bias,   ∂L/∂x = ∂L/∂y · W̃

W̃ is made anew in the forward and in the backward pass and kept in neither, so what
stays in memory is the codes. Codes, scales and zeros have no gradient. It computes in
the dtype that ``nn.Linear`` would: that of x, or of autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from loralab.errors import QuantizationError, nearest
from loralab.quantization.affine import (
    AffineWeight,
    check_format,
    dequantize,
    quantize,
)


class _Product(torch.autograd.Function):
    """x W̃ᵀ + bias; keeps the codes for the backward pass, never W̃ nor x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        bias: torch.Tensor | None,
        codes: torch.Tensor,
        scales: torch.Tensor,
        zeros: torch.Tensor,
        form: tuple[int, int],
    ) -> torch.Tensor:
        """Return the product (… × O); `form` is bits and group."""
        ctx.save_for_backward(codes, scales, zeros)
        ctx.form = form
        weight = dequantize(AffineWeight(codes, scales, zeros, *form))
        return functional.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x and bias."""
        (grad,) = grads
        to_x = to_bias = None
        if ctx.needs_input_grad[0]:
            weight = dequantize(AffineWeight(*ctx.saved_tensors, *ctx.form))
            to_x = grad @ weight.to(grad.dtype)
        if ctx.needs_input_grad[1]:
            to_bias = grad.reshape(-1, grad.shape[-1]).sum(0)
        return to_x, to_bias, None, None, None, None


class AffineLinear(nn.Module):
    """A linear module whose weight is an `AffineWeight`.

    Args:
        packed: The weight; its tensors become the buffers codes, scales and zeros.
        bias: The bias (O), or None.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def __init__(self, packed: AffineWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        self.bits, self.group = packed.bits, packed.group
        self.register_buffer("codes", packed.codes)
        self.register_buffer("scales", packed.scales)
        self.register_buffer("zeros", packed.zeros)
        self.bias = bias

    @classmethod
    def from_linear(
        cls,
        linear: Any,
        bits: int,
        group: int = 32,
        clipping: str = "minmax",
        dtype: torch.dtype = torch.float32,
    ) -> AffineLinear:
        """Quantize an ``nn.Linear`` or transformers' ``Conv1D``; the bias is shared.

        Args:
            linear: The module.
            bits: 2, 3, 4 or 8.
            group: Inputs that share a scale and a zero.
            clipping: ``minmax`` or ``mse``.
            dtype: Of scales and zeros.

        Raises:
            QuantizationError: another kind of module, or see `quantize`.
        """
        packed = quantize(float_weight(linear), bits, group, clipping, dtype)
        made = cls(packed, linear.bias)
        made.train(linear.training)
        return made

    @property
    def packed(self) -> AffineWeight:
        """The quantized weight."""
        return AffineWeight(self.codes, self.scales, self.zeros, self.bits, self.group)

    @property
    def weight(self) -> torch.Tensor:
        """W̃ (O × I), made anew: for those who ask for a dtype, a device or values."""
        return dequantize(self.packed)

    @property
    def W_q(self) -> torch.Tensor:  # noqa: N802
        """The codes; PEFT asks a weight's device here, else of all of W̃, 18 times."""
        return self.codes

    def to_linear(self) -> nn.Linear:
        """Return an ``nn.Linear`` with W̃ as its weight; the bias is shared."""
        with torch.device("meta"):
            made = nn.Linear(self.in_features, self.out_features, bias=False)
        made.weight = nn.Parameter(self.weight, requires_grad=False)
        made.register_parameter("bias", self.bias)
        return made.train(self.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x W̃ᵀ + bias (… × O) of x (… × I)."""
        form = (self.bits, self.group)
        made: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, self.bias, self.codes, self.scales, self.zeros, form
        )
        return made

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True
    ) -> AffineLinear:
        """Move as any module, but keep the dtype of scales and zeros.

        ``model.to(torch.bfloat16)`` would round the zeros, by more than much of an
        adapter that was merged into them.
        """
        exact = {"scales": self.scales, "zeros": self.zeros}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, tensor in exact.items():
            moved = getattr(self, name)
            if moved.dtype != tensor.dtype:
                setattr(self, name, tensor.to(moved.device))
        return self

    def extra_repr(self) -> str:
        """Return what ``print`` shows of the module."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits={self.bits}, group={self.group}"
        )


@dataclass(frozen=True)
class Quantized:
    """What became of one module.

    Attributes:
        shape: out_features and in_features.
        bytes_before: Of the float weight.
        bytes_after: Of codes, scales and zeros.
        relative_error: ‖W − W̃‖ / ‖W‖ (Frobenius).
    """

    shape: tuple[int, int]
    bytes_before: int
    bytes_after: int
    relative_error: float


def float_weight(module: nn.Module, where: str = "") -> torch.Tensor:
    """Return the weight (O × I) of a linear module.

    Args:
        module: ``nn.Linear``, or transformers' ``Conv1D``, which stores I × O.
        where: Its path, for the error.

    Raises:
        QuantizationError: another kind of module, or one that is quantized already.
    """
    weight = getattr(module, "weight", None)
    conv1d = type(module).__name__ == "Conv1D"  # no import of transformers for a name
    known = isinstance(module, nn.Linear) or conv1d
    if known and isinstance(weight, nn.Parameter) and weight.is_floating_point():
        return weight.T if conv1d else weight
    raise QuantizationError(
        f"{type(module).__name__} has no float matrix to quantize",
        where=where,
        fix="name nn.Linear modules of a base that is not quantized",
    )


def _check_untied(model: nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    """Refuse a weight that stands in the model under a second name."""
    seen: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        seen.setdefault(id(parameter), []).append(path)
    for name in wanted:
        paths = seen[id(model.get_submodule(name).weight)]
        if len(paths) > 1:
            raise QuantizationError(
                f"its weight is also {next(p for p in paths if p != f'{name}.weight')}",
                where=name,
                why="the other would stay float: nothing freed, and two weights of one",
                fix="leave tied modules out",
            )


def float_matrices(model: nn.Module, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return the float weight (O × I) of each named linear module.

    Raises:
        QuantizationError: no such module, one named twice, another kind of module, or a
            tied weight.
    """
    modules = dict(model.named_modules())
    wanted = {}
    for name in names:
        if name not in modules:
            raise QuantizationError(
                f"the model has no module {name!r}", fix=nearest(name, modules)
            )
        wanted[name] = float_weight(modules[name], name)
    if len(wanted) < len(names):
        raise QuantizationError("a module is named twice", where=", ".join(names))
    _check_untied(model, wanted)
    return wanted


def quantize_modules(
    model: nn.Module,
    names: Sequence[str],
    bits: int,
    group: int = 32,
    clipping: str = "minmax",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Quantized]:
    """Replace linear modules of a model by `AffineLinear`, in place.

    Everything is checked before anything is replaced; the float weights are let go one
    by one.

    Args:
        model: The model.
        names: Full paths of ``nn.Linear`` or ``Conv1D`` modules.
        bits: 2, 3, 4 or 8.
        group: Inputs that share a scale and a zero.
        clipping: ``minmax`` or ``mse``.
        dtype: Of scales and zeros.

    Returns:
        Name -> what became of it, one for each name.

    Raises:
        QuantizationError: no such module, one named twice, another kind of module, a
            tied weight, or a format that cannot hold one.
    """
    wanted = float_matrices(model, names)
    for name, weight in wanted.items():
        check_format(weight.shape[1], bits, group, name)
    report = {}
    for name in list(wanted):
        weight = wanted.pop(name).detach()
        parent, _, leaf = name.rpartition(".")
        made = AffineLinear.from_linear(
            model.get_submodule(name), bits, group, clipping, dtype
        )
        lost = torch.linalg.vector_norm(weight - made.weight)
        whole = torch.linalg.vector_norm(weight)
        report[name] = Quantized(
            shape=made.packed.shape,
            bytes_before=weight.nbytes,
            bytes_after=made.packed.nbytes,
            relative_error=float(lost / whole) if whole else 0.0,
        )
        setattr(model.get_submodule(parent), leaf, made)
    return report
