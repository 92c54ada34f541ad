"""QA-LoRA (Xu et al., ICLR 2024, arXiv:2309.14717): an adapter that merges into zeros.

The base is quantized in groups of g inputs, W̃ = scale · (code − zero). The adapter sees
of x only the sum over each group, so its update is constant inside a group:

    y = W̃ x + s · B A Σ_g(x),   Σ_g(x)[l] = Σ_{i in group l} x[i],   s = alpha / rank
    A: rank × in/g,   B: out × rank,   ΔW[o, i] = s (B A)[o, i // g]

(the paper writes g · AvgPool for Σ_g). Merging needs neither new codes nor new scales:

    zero' = zero − s · B A / scale        for each output and group

That is exact up to the rounding of one real zero. With integer zeros it is not: an
adapter moves a weight by much less than a step, so most of it is rounded away. Pooling
over several whole quantization groups is the same with a repeated B A.

Elsewhere, and different:

* The reference implementation (yuhuixu1993/qa-lora) averages, without the factor g, and
  divides by g where it merges: the same adapter with s / g for s. It draws A as Xavier
  did, and its dropout is on pooled features; here, as in PEFT, it is on the inputs.
* PEFT's ``use_qalora`` multiplies the average by in/g where the paper has g: its scale
  is the paper's times in/g², another one for each width (0.375 at 384 and 1.5 at 1536
  for g = 32). It exists for GPTQ layers alone, is ignored without a word on others, its
  group is not tied to the quantization's, and merging is not implemented.

**How A begins.** LoRA draws A uniform with variance 1 / (3 · fan-in), and the fan-in is
in/g here. A sum over g uncorrelated inputs has g times their variance, so A Σ_g(x)
would be √g times LoRA's A x. A is drawn as LoRA does, then divided by √g: the forward
is the paper's, and a learning rate that was found for LoRA keeps its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn
from torch.nn import functional

from loralab.errors import AdapterError
from loralab.quantization.linear import AffineLinear


def sum_pool(x: torch.Tensor, group: int) -> torch.Tensor:
    """Return the sums over groups of the last axis: (… × I) to (… × I/group)."""
    return x.reshape(*x.shape[:-1], -1, group).sum(-1)


def merged_zeros(
    zeros: torch.Tensor, scales: torch.Tensor, delta: torch.Tensor
) -> torch.Tensor:
    """Return the zeros of W̃ + ΔW, rounded once.

    Args:
        zeros: Real zeros (O × G).
        scales: Scales (O × G).
        delta: ΔW of each pooled group, s · B A (O × L); L divides G.

    Returns:
        The new zeros, in the dtype of `zeros`.
    """
    each = delta.double().repeat_interleave(zeros.shape[1] // delta.shape[1], dim=1)
    return (zeros.double() - each / scales.double()).to(zeros.dtype)


def to_plain(state: Mapping[str, torch.Tensor], group: int) -> dict[str, torch.Tensor]:
    """Return the state of a plain LoRA with the same update, exactly.

    Rank, alpha and targets stay as they are. It belongs on the dequantized base
    (`AffineLinear.to_linear`), not on the base before quantization.

    Args:
        state: An adapter's tensors by PEFT's names.
        group: Inputs of a pooled group.
    """
    return {
        name: tensor.repeat_interleave(group, dim=1) if _is_a(name) else tensor
        for name, tensor in state.items()
    }


def from_plain(
    state: Mapping[str, torch.Tensor], group: int
) -> dict[str, torch.Tensor]:
    """Return the QA-LoRA of a plain one; undoes `to_plain`, exactly.

    Args:
        state: An adapter's tensors by PEFT's names.
        group: Inputs of a pooled group.

    Raises:
        AdapterError: A is not constant inside groups, or they do not divide it.
    """
    made = dict(state)
    for name in filter(_is_a, state):
        plain = state[name]
        if plain.shape[1] % group:
            raise AdapterError(
                f"{plain.shape[1]} inputs are no multiple of the group {group}",
                where=name,
            )
        made[name] = plain[:, ::group].contiguous()
        if not torch.equal(made[name].repeat_interleave(group, dim=1), plain):
            raise AdapterError(
                f"A is not constant inside groups of {group}",
                where=name,
                why="only then can it merge into zeros; nearest is not the same",
                fix="train it with qa-lora",
            )
    return made


def _is_a(name: str) -> bool:
    return ".lora_A." in name


class PooledA(nn.Linear):
    """A on sums: x (… × I) to A Σ_g(x) (… × rank).

    Args:
        in_features: I.
        rank: Rank.
        group: Inputs of a pooled group.
    """

    def __init__(self, in_features: int, rank: int, group: int) -> None:
        super().__init__(in_features // group, rank, bias=False)
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return A Σ_g(x)."""
        return functional.linear(sum_pool(x, self.group), self.weight)


class QALoraLinear(nn.Module, LoraLayer):
    """PEFT's layer on an `AffineLinear`; PEFT makes it, once told by `register`.

    ``config.qalora_group_size`` is the pooling group: the quantization group, or a
    multiple of it. ``config.use_qalora`` is for PEFT's own, and stays False.

    Args:
        base_layer: The quantized module.
        adapter_name: Of the first adapter.
        config: PEFT's configuration.
        r: Rank.
        lora_alpha: Alpha.
        kwargs: What else PEFT passes to a layer.

    Raises:
        AdapterError: the groups do not match, or a bias is asked for.
    """

    def __init__(
        self,
        base_layer: AffineLinear,
        adapter_name: str,
        config: LoraConfig,
        r: int = 0,
        lora_alpha: float = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer, **kwargs)
        self.fan_in_fan_out = False
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha, config, **kwargs)

    @property
    def _base(self) -> AffineLinear:
        return cast(AffineLinear, self.get_base_layer())

    def _pooled(self, adapter: str) -> PooledA:
        return cast(PooledA, self.lora_A[adapter])

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        base = cast(AffineLinear, module)  # PEFT's own warns of a type it does not know
        return base.in_features, base.out_features

    def update_layer(
        self,
        adapter_name: str,
        r: int,
        lora_alpha: float,
        config: LoraConfig,
        **kwargs: Any,
    ) -> None:
        """Add an adapter: PEFT's LoRA, with its A put on sums."""
        name = kwargs.get("target_name", "")
        group = config.qalora_group_size
        count, quantized = self._base.in_features, self._base.group
        if group % quantized or count % group:
            raise AdapterError(
                f"pooling over {group} inputs does not match the quantization group "
                f"{quantized} of {count} inputs",
                where=name,
                why="an update that differs inside a group cannot merge into its zero",
                fix=f"pool over {quantized}, or a multiple that divides the inputs",
            )
        if config.lora_bias:
            raise AdapterError("lora_bias does not merge into zeros", where=name)
        super().update_layer(adapter_name, r, lora_alpha, config, **kwargs)  # type: ignore[arg-type]
        self.lora_A[adapter_name] = PooledA(count, r, group)
        self.reset_lora_parameters(adapter_name, config.init_lora_weights)  # type: ignore[no-untyped-call]
        with torch.no_grad():  # "How A begins", above
            self._pooled(adapter_name).weight.div_(group**0.5)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def group_delta(self, adapter: str) -> torch.Tensor:
        """Return s · B A (O × L), in fp64, so that it is rounded only once."""
        A = self._pooled(adapter).weight.detach().double()
        B = cast(nn.Linear, self.lora_B[adapter]).weight.detach().double()
        return (B @ A) * float(self.scaling[adapter])

    def get_delta_weight(self, adapter: str) -> torch.Tensor:
        """Return ΔW (O × I), in the dtype of B."""
        pooled = self._pooled(adapter)
        delta = self.group_delta(adapter).to(pooled.weight.dtype)
        return delta.repeat_interleave(pooled.group, dim=1)

    def _shift(self, adapter: str, sign: int) -> None:
        """Add ±ΔW to the base by its zeros.

        Raises:
            AdapterError: a new zero is not finite; the base is left as it was.
        """
        base = self._base
        zeros = merged_zeros(base.zeros, base.scales, sign * self.group_delta(adapter))
        if not zeros.isfinite().all():
            raise AdapterError(f"adapter {adapter!r} is not finite, or not merged so")
        base.zeros = zeros

    def merge(
        self, safe_merge: bool = False, adapter_names: list[str] | None = None
    ) -> None:
        """Merge adapters into the zeros; codes and scales are not touched.

        Args:
            safe_merge: Without effect: a merge is always checked to be finite.
            adapter_names: Which; the active ones by default.

        Raises:
            AdapterError: a new zero is not finite; the base is left as it was.
        """
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter in self.lora_A:
                self._shift(adapter, 1)
                self.merged_adapters.append(adapter)

    def unmerge(self) -> None:
        """Take every merged adapter out of the zeros again, up to rounding."""
        while self.merged_adapters:
            self._shift(self.merged_adapters.pop(), -1)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return W̃ x + bias + Σ over active adapters of s · B A Σ_g(dropout(x))."""
        self._check_forward_args(x, *args, **kwargs)  # type: ignore[no-untyped-call]
        names = kwargs.pop("adapter_names", None)
        if self.disable_adapters and self.merged:
            self.unmerge()
        if names is not None and not self.disable_adapters:
            mixed: torch.Tensor = self._mixed_batch_forward(
                x, *args, adapter_names=names, **kwargs
            )
            return mixed
        result: torch.Tensor = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        dtype = result.dtype
        for adapter in self.active_adapters:
            if adapter in self.lora_A:
                A, B = self._pooled(adapter), self.lora_B[adapter]
                cast = self._cast_input_dtype(x, A.weight.dtype)
                update = B(A(self.lora_dropout[adapter](cast)))
                result = result + update * self.scaling[adapter]
        return result.to(dtype)


def register(config: LoraConfig) -> LoraConfig:
    """Tell PEFT which layer goes on an `AffineLinear`; returns the same configuration.

    PEFT keeps this in memory only: who loads such an adapter quantizes the base and
    registers anew. Without it PEFT refuses the module by its name.
    """
    config._register_custom_module({AffineLinear: QALoraLinear})
    return config
