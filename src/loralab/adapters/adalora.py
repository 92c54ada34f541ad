"""AdaLoRA's numerics (Zhang et al. 2023, arXiv:2303.10512), driven on PEFT's model.

    ΔW_k = s · P_k Λ_k Q_k,     s = alpha / (init_rank + 1e-5), pruned or not
    triplet (k, i): P_k's column i, λ_{k,i}, Q_k's row i

After each optimizer step t (eqs. 8 to 11; β1, β2 smooth):

    I   = |w · ∂L/∂w|
    Ī_t = β1 Ī_{t−1} + (1 − β1) I          Ū_t = β2 Ū_{t−1} + (1 − β2) |I − Ī_t|
    s(w) = Ī_t · Ū_t
    S_{k,i} = s(λ_{k,i}) + mean_j s(P_{k,ji}) + mean_j s(Q_{k,ij})

and every ΔT steps the λ of all but the b(t) best triplets of all modules become 0, with

    b(t) = b_0                                              t ≤ t_i
    b(t) = b_T + (b_0 − b_T) (1 − (t − t_i)/(T − t_i − t_f))³   until T − t_f
    b(t) = b_T                                              after

PEFT calls P ``lora_B``, λ ``lora_E``, Q ``lora_A``. It differs from the paper so: w is
read after the step while its gradient is from before; triplets that tie with the
threshold go too, so the total may end below b_T; the regulariser (eq. 4) is the mean of
norms, not the sum of their squares; scores stop at T − t_f, where the last allocation
uses those of the step before. The gradients are those that the optimizer saw: with the
regulariser's, and clipped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loralab.errors import AdapterError, ConfigError
from loralab.models.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch
    from peft import AdaLoraConfig, LoraConfig

ADAPTER = "default"
PREFIX = "base_model.model."
EPSILON = 1e-5
"""What PEFT adds to the rank that divides alpha."""

MOVES = 2
"""The budget falls in so many allocations at least, else it would drop at once."""


@dataclass(frozen=True)
class Allocation:
    """What one update did.

    Attributes:
        budget: The triplets that the schedule allows at this step, over all modules.
        masked: Whether the rest of them was zeroed by importance at this step.
        final: Whether this was the last such allocation.
    """

    budget: int
    masked: bool
    final: bool


def config_of(model: Any) -> AdaLoraConfig:
    """Return the configuration that PEFT's model and its allocator share."""
    found: AdaLoraConfig = model.peft_config[ADAPTER]
    return found


def layers_of(model: Any) -> dict[str, Any]:
    """Return the adapted modules by their path in the base model."""
    from peft.tuners.adalora.layer import AdaLoraLayer

    return {
        name.removeprefix(PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, AdaLoraLayer)
    }


def set_schedule(
    model: Any, total_steps: int, warmup_share: float, final_share: float
) -> None:
    """Give the schedule the real number of optimizer steps.

    Args:
        model: A PEFT model with AdaLoRA.
        total_steps: Optimizer steps T of the whole training.
        warmup_share: t_i / T, rounded down.
        final_share: t_f / T, rounded down.

    Raises:
        ConfigError: the phase between holds too few steps for the budget to fall in.
    """
    config = config_of(model)
    warmup, final = int(warmup_share * total_steps), int(final_share * total_steps)
    left = total_steps - warmup - final
    if left < MOVES * config.deltaT:
        raise ConfigError(
            f"of {total_steps} steps {warmup} are warm-up and {final} final, and "
            f"{left} are left, in which the budget falls every {config.deltaT}",
            where="peft.params.delta_t",
            why=f"it would fall fewer than {MOVES} times, so at once",
            fix="train longer, lower delta_t, warmup_share or final_share",
        )
    config.total_step, config.tinit, config.tfinal = total_steps, warmup, final


def update(model: Any, step: int) -> Allocation:
    """Update the importance and, when it is time, the ranks.

    Call it after the optimizer's step, while gradients still stand.

    Args:
        model: A PEFT model with AdaLoRA whose schedule is set.
        step: The step just taken; the first is 1.

    Raises:
        AdapterError: no gradient reached a triplet.
    """
    config, allocator = config_of(model), model.base_model.rankallocator
    last = int(config.total_step or 0) - config.tfinal
    if step < last:
        _check_gradients(model)
    budget, due = allocator.budget_schedule(step)
    model.base_model.update_and_allocate(step)
    return Allocation(budget, due or step == last, step == last)


def _check_gradients(model: Any) -> None:
    for name, layer in layers_of(model).items():
        for part in (layer.lora_A, layer.lora_B, layer.lora_E):
            if part[ADAPTER].grad is None:
                raise AdapterError(
                    "no gradient reaches this module, so its importance is unknown",
                    where=name,
                    why="no loss depends on it, or gradients are zeroed already",
                    fix="leave it out of peft.params.target_modules, or update earlier",
                )


def orthogonality(model: Any) -> torch.Tensor:
    """Return how far P and Q are from orthogonal, a scalar with a gradient.

    As PEFT computes it: the mean of ‖PᵀP − I‖_F and ‖QQᵀ − I‖_F over all modules.
    The paper (eq. 4) sums their squares.
    """
    import torch

    norms = []
    for layer in layers_of(model).values():
        q_RI, p_OR = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        for gram_RR in (q_RI @ q_RI.T, p_OR.T @ p_OR):
            eye = torch.eye(len(gram_RR), dtype=gram_RR.dtype, device=gram_RR.device)
            norms.append(torch.linalg.norm(gram_RR - eye))
    return torch.stack(norms).mean()


def kept_triplets(model: Any) -> dict[str, list[bool]]:
    """Return, by module, which triplets the last allocation kept; all before it."""
    pattern = config_of(model).rank_pattern or {}
    found = {}
    for name, layer in layers_of(model).items():
        rank = len(layer.lora_E[ADAPTER])
        # PEFT drops the adapter's name from its keys when it saves
        keys = (f"{name}.lora_E.{ADAPTER}", f"{name}.lora_E")
        kept = next((pattern[key] for key in keys if key in pattern), [True] * rank)
        found[name] = list(kept)
    return found


def realised_ranks(model: Any) -> dict[str, int]:
    """Return each module's present rank: the triplets kept by the last allocation."""
    return {name: sum(kept) for name, kept in kept_triplets(model).items()}


def allocator_state(model: Any) -> dict[str, Any]:
    """Return what the next allocation depends on beside weights and gradients.

    Returns:
        ``sensitivity`` Ī and ``uncertainty`` Ū by parameter (as the parameter, fp32),
        and ``rank_pattern``: which triplets are kept, None before the first allocation.
    """
    allocator = model.base_model.rankallocator
    return {
        "sensitivity": dict(allocator.exp_avg_ipt),
        "uncertainty": dict(allocator.exp_avg_unc),
        "rank_pattern": config_of(model).rank_pattern,
    }


def load_allocator_state(model: Any, state: Mapping[str, Any]) -> None:
    """Set what `allocator_state` returned."""
    allocator = model.base_model.rankallocator
    device = {name: p.device for name, p in model.base_model.model.named_parameters()}
    for wanted, held in (
        ("sensitivity", allocator.exp_avg_ipt),
        ("uncertainty", allocator.exp_avg_unc),
    ):
        held.clear()
        held.update({n: t.to(device[n]) for n, t in state[wanted].items()})
    # its values are made anew at each step, but a missing name would begin at zero
    allocator.ipt = dict(allocator.exp_avg_ipt)
    config_of(model).rank_pattern = state["rank_pattern"]


def effective_scale(model: Any) -> float:
    """Return s, the factor of P Λ Q, which pruning leaves as it is."""
    config = config_of(model)
    return float(config.lora_alpha / (config.init_r + EPSILON))


def to_plain_lora(model: Any) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Return the same update as plain LoRA of the realised ranks.

    B = P's kept columns, A = Λ Q's kept rows, alpha_k = s · rank_k. Modules of rank 0
    are not adapted.

    Args:
        model: A PEFT model with AdaLoRA whose ranks are final.

    Returns:
        PEFT's configuration, and the state as `set_peft_model_state_dict` takes it:
        fp32 factors, and the modules that are saved in full.
    """
    from peft import LoraConfig, get_peft_model_state_dict

    config, scale, layers = config_of(model), effective_scale(model), layers_of(model)
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    tensors = {n: t.clone() for n, t in state.items() if ".lora_" not in n}
    ranks = {name: rank for name, rank in realised_ranks(model).items() if rank}
    for name, kept in kept_triplets(model).items():
        if name in ranks:
            layer = layers[name]
            q_RI = layer.lora_A[ADAPTER] * layer.lora_E[ADAPTER]
            tensors[f"{PREFIX}{name}.lora_A.weight"] = q_RI[kept].detach().clone()
            p_OR = layer.lora_B[ADAPTER][:, kept]
            tensors[f"{PREFIX}{name}.lora_B.weight"] = p_OR.detach().clone()
    most = max(ranks.values())
    anchored = {name: f"^{re.escape(name)}$" for name in ranks}
    others = {name: rank for name, rank in ranks.items() if rank != most}
    made = LoraConfig(
        r=most,
        lora_alpha=scale * most,  # type: ignore[arg-type]  # a float works
        lora_dropout=config.lora_dropout,
        target_modules=list(ranks),
        rank_pattern={anchored[n]: rank for n, rank in others.items()},
        alpha_pattern={anchored[n]: scale * rank for n, rank in others.items()},
        fan_in_fan_out=config.fan_in_fan_out,
        modules_to_save=list(config.modules_to_save or ()) or None,
        task_type=config.task_type,
        revision=config.revision,
    )
    made.base_model_name_or_path = config.base_model_name_or_path
    return made, tensors


def as_plain_lora(model: Any) -> Any:
    """Put the plain LoRA of `to_plain_lora` on the base in the place of AdaLoRA.

    Args:
        model: A PEFT model with AdaLoRA whose ranks are final; it is used up.

    Returns:
        The PEFT model that stands on the same base.
    """
    from peft import get_peft_model, set_peft_model_state_dict
    from peft.utils.other import ModulesToSaveWrapper

    made, tensors = to_plain_lora(model)
    path, full = made.base_model_name_or_path, list(made.modules_to_save or ())
    names = sorted(made.target_modules or ())
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):  # PEFT would leave the trained one
            before = module.original_module.state_dict()
            module.modules_to_save[ADAPTER].load_state_dict(before)
    with quiet_libraries():
        plain = get_peft_model(model.unload(), made)
        # PEFT writes the folder it was loaded from, names a head twice, and shortens
        # paths to a set of endings, in an order that differs from process to process
        made.base_model_name_or_path, made.modules_to_save = path, full or None
        made.target_modules = names
        set_peft_model_state_dict(plain, tensors)
    return plain
