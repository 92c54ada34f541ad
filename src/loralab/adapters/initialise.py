"""How LoRA's A and B begin, beyond the default: done, timed and proved.

    gaussian    A ~ N(0, 1/rank²), B = 0
    orthogonal  A, B from orthogonal rows, so that B A = 0
    pissa       B A = the largest singular part of W     (Meng et al. 2024, 2404.02948)
    olora       B A = the first part of W's QR      (Büyükakyüz 2024, arXiv:2406.01775)
    corda       B A = part of W by the inputs' covariance (Yang et al. 2024, 2406.05223)
    lora-ga     B, A by singular vectors of the gradient (Wang et al. 2024, 2407.05000)
    eva         A = principal components of the inputs, B = 0        (arXiv:2410.07170)
    loftq       W → Q(W) in NF4, and s B A ≈ W − Q(W)     (Li et al. 2023, 2310.08659)

pissa, olora, corda and lora-ga move a part out of the base, W ← W − s B A, so training
begins at the base model. What is saved is the difference to the untouched base,

    ΔW = s (B A − B₀ A₀) = s [B, −B₀] [A; A₀],   of rank 2 r,

a plain LoRA that loads anywhere.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from loralab.adapters.calibration import (
    READS_ROWS,
    Batches,
    at_real_tokens,
    input_counts,
    input_covariance,
    weight_gradients,
)
from loralab.adapters.layers import lora_layers
from loralab.errors import AdapterError
from loralab.models.loaded import LoadedModel
from loralab.models.quiet import quiet_libraries

if TYPE_CHECKING:
    import torch

MOVES_BASE = ("pissa", "olora", "corda", "lora-ga")


@dataclass
class Initialised:
    """What an initialisation did.

    Attributes:
        record: What is written into the run: init, seconds, hashes before and after.
        taken: Module -> (A₀, B₀), what was moved out of the base; fp32.
    """

    record: dict[str, Any]
    taken: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


def hash_of(model: Any) -> str:
    """Return a hash over A and B of every LoRA layer.

    What an init takes from the base follows from them, so the base is not read.
    """
    digest = hashlib.sha256()
    for name, layer in lora_layers(model).items():
        for tensor in _ab(layer):
            data = tensor.detach().float().cpu().contiguous().numpy()
            digest.update(name.encode() + data.tobytes())
    return digest.hexdigest()[:16]


def _ab(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def initialise(
    model: Any, init: str, loaded: LoadedModel, batches: Batches | None
) -> Initialised:
    """Give A and B their first values, and prove that they are not the default's.

    Args:
        model: A PEFT model with LoRA, just attached, initialised by default.
        init: ``orthogonal``, ``pissa``, ``olora``, ``corda``, ``lora-ga``, ``eva`` or
            ``loftq``.
        loaded: Its base.
        batches: Training batches; eva, corda and lora-ga need them.

    Raises:
        AdapterError: no batches, a rank or a base that the init does not fit, or an
            init that left everything as it was.
    """
    if init in READS_ROWS and batches is None:
        raise AdapterError(
            f"init={init} looks at training rows, and there are none",
            where="peft.params.init",
            why="without them it would silently be the default",
            fix="train an experiment, or pass batches to attach",
        )
    _check_ranks(model, init)
    before, began = hash_of(model), time.perf_counter()
    with quiet_libraries():
        _STEPS[init](model, loaded, batches)
    taken: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    if init in MOVES_BASE:
        for name, layer in lora_layers(model).items():
            a0, b0 = (t.detach().float().clone() for t in _ab(layer))
            taken[name] = (a0, b0)
    record = {
        "init": init,
        "seconds": round(time.perf_counter() - began, 3),
        "batches": sum(1 for _ in batches()) if batches and init in READS_ROWS else 0,
        "hash_before": before,
        "hash_after": hash_of(model),
    }
    check_initialised(record)
    return Initialised(record, taken)


_TAKES = {"corda": 1, "loftq": 1, "lora-ga": 2}
"""Singular vectors of a module's matrix that an init takes, in ranks."""


def _check_ranks(model: Any, init: str) -> None:
    """Refuse ranks for which a module has too few singular vectors, or components."""
    for name, layer in lora_layers(model).items():
        shape = layer.in_features, layer.out_features
        most = layer.in_features if init == "eva" else min(shape)
        takes, rank = _TAKES.get(init, int(init == "eva")), layer.r["default"]
        if takes * rank > most:
            raise AdapterError(
                f"init={init} allows this module, {shape[0]} in × {shape[1]} out, "
                f"rank {most // takes} at most, and it has {rank}",
                where=name,
                why="it takes its first A and B from a matrix that has no more vectors",
                fix="lower peft.params.rank, or this module's in rank_pattern and "
                "alpha_pattern",
            )


def check_initialised(record: dict[str, Any]) -> None:
    """Assert that an initialisation has changed something.

    Raises:
        AdapterError: A and B are those of the default.
    """
    if record["hash_before"] == record["hash_after"]:
        raise AdapterError(
            f"init={record['init']} has changed nothing: the adapter is the default's",
            where="peft.params.init",
        )


def _each(model: Any) -> Iterator[tuple[str, Any]]:
    yield from lora_layers(model).items()


def _orthogonal(model: Any, loaded: LoadedModel, batches: Batches | None) -> None:
    for name, layer in _each(model):
        if layer.r["default"] % 2:
            raise AdapterError(
                f"init=orthogonal needs even ranks, and this one is "
                f"{layer.r['default']}",
                where=name,
                fix="set peft.params.rank to an even number",
            )
        layer.orthogonal_init("default")


def _pissa(model: Any, loaded: LoadedModel, batches: Batches | None) -> None:
    for _, layer in _each(model):
        layer.pissa_init("default", "pissa")


def _olora(model: Any, loaded: LoadedModel, batches: Batches | None) -> None:
    if loaded.facts.conv1d:
        raise AdapterError(
            "init=olora does not work on this base",
            where="peft.params.init",
            why=f"{loaded.facts.model_type} stores its weights as in × out, which PEFT "
            "does not turn round",
            fix="choose pissa",
        )
    for _, layer in _each(model):
        layer.olora_init("default")


def _lora_ga(model: Any, loaded: LoadedModel, batches: Batches | None) -> None:
    from peft import LoraGAConfig

    assert batches is not None
    layers = lora_layers(model)
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    gradients = weight_gradients(model, weights, loaded, batches)
    for name, layer in layers.items():
        layer.get_base_layer()._peft_loraga_grad = gradients.pop(name)
        layer.lora_ga_init("default", LoraGAConfig())  # takes the gradient off again


def _corda(model: Any, loaded: LoadedModel, batches: Batches | None) -> None:
    """Let PEFT decompose W by our covariance of each module's inputs.

    PEFT's own `preprocess_corda` takes one row at a time, and no module without a
    sequence (a pooler).
    """
    from peft import LoraConfig
    from peft.tuners.lora import corda

    assert batches is not None
    layers = lora_layers(model)
    inner = {f"{name}.base_layer": layer for name, layer in layers.items()}
    config = LoraConfig(target_modules=list(inner), init_lora_weights="corda")
    bases = {name: layer.get_base_layer() for name, layer in layers.items()}
    covariance = input_covariance(model, bases, loaded, batches)
    for name, layer in layers.items():
        base = bases[name]
        base.corda_method, base.rank = "ipm", layer.r["default"]
        base.covariance_matrix = covariance.pop(name)
        base.eigens = corda.collect_eigens_for_layer(base, config)
        del base.covariance_matrix
    corda.crop_corda_eigens(model.get_base_model(), config)
    for name, layer in layers.items():
        layer.corda_init("default", "corda")  # takes the eigenvectors off again
        del bases[name].corda_method, bases[name].rank


def _eva(model: Any, loaded: LoadedModel, batches: Batches | None) -> None:
    from peft import EvaConfig, initialize_lora_eva_weights

    from loralab.models.forward import supervised_logits

    assert batches is not None
    _check_counts(model, loaded, batches)
    config = model.peft_config["default"]
    patterns = (config.target_modules, config.rank_pattern, config.alpha_pattern)
    config.init_lora_weights, config.eva_config = "eva", EvaConfig(rho=1.0)
    initialize_lora_eva_weights(
        model,
        list(batches()),
        forward_fn=lambda net, batch: supervised_logits(net, batch, loaded),
        prepare_model_inputs_fn=lambda batch, _: batch,
        prepare_layer_inputs_fn=_real_inputs,
        show_progress_bar=False,
    )
    config.init_lora_weights, config.eva_config = True, None
    # rho = 1 keeps every rank; PEFT rewrites the patterns by bare names
    config.target_modules, config.rank_pattern, config.alpha_pattern = patterns


def _check_counts(model: Any, loaded: LoadedModel, batches: Batches) -> None:
    """Refuse batches with fewer inputs than components: PEFT would wait for ever."""
    layers = lora_layers(model)
    bases = {name: layer.get_base_layer() for name, layer in layers.items()}
    for name, count in input_counts(model, bases, loaded, batches).items():
        if count < layers[name].r["default"]:
            raise AdapterError(
                f"a calibration batch gives this module {count} inputs, and init=eva "
                f"wants {layers[name].r['default']} components of them",
                where=name,
                why="a pooler reads one token a row",
                fix="raise peft.params.calibration.rows, or target other modules",
            )


def _real_inputs(inputs: Any, batch: Any, name: str) -> Any:
    """Return a layer's inputs at real tokens, [N, in]."""
    found = inputs[0] if isinstance(inputs, tuple) else inputs
    return at_real_tokens(name, found, batch).contiguous()  # PEFT hashes by a view


def _loftq(model: Any, loaded: LoadedModel, batches: Batches | None) -> None:
    if find_spec("bitsandbytes") is None:
        raise AdapterError(
            "init=loftq needs the package bitsandbytes, which is not here",
            where="peft.params.init",
            fix="pip install 'loralab[bitsandbytes]'",
        )
    for _, layer in _each(model):
        loftq_layer(layer)


ITERATIONS = 1
"""Of LoftQ: PEFT's default; the paper takes 5 for 2 bits, 1 is as good for 4."""


def loftq_layer(layer: Any) -> None:
    """Let a LoRA layer begin as LoftQ does: W → Q in NF4, and s B A ≈ W − Q.

    PEFT's own needs a GPU, and forgets the scale s: its Q + s B A is not near W unless
    alpha = rank. Blocks of 64 values, absmax in fp32 (bitsandbytes).
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    base, rank = layer.get_base_layer(), layer.r["default"]
    weight = base.weight.data.float()
    out_in = weight.T if layer.fan_in_fan_out else weight
    update = torch.zeros_like(out_in)
    for _ in range(ITERATIONS):
        codes, state = quantize_4bit((out_in - update).contiguous(), quant_type="nf4")
        quantized = dequantize_4bit(codes, state).float()
        left, values, right = torch.linalg.svd(out_in - quantized, full_matrices=False)
        root = values[:rank].sqrt()
        factor_b, factor_a = left[:, :rank] * root, root[:, None] * right[:rank]
        update = factor_b @ factor_a
    scale = layer.scaling["default"] ** 0.5
    layer.lora_A["default"].weight.data = (factor_a / scale).contiguous()
    layer.lora_B["default"].weight.data = (factor_b / scale).contiguous()
    kept = quantized.T if layer.fan_in_fan_out else quantized
    base.weight.data = kept.contiguous().to(base.weight.dtype)


_STEPS = {
    "orthogonal": _orthogonal,
    "pissa": _pissa,
    "olora": _olora,
    "corda": _corda,
    "lora-ga": _lora_ga,
    "eva": _eva,
    "loftq": _loftq,
}


def plain_difference(
    model: Any, taken: dict[str, tuple[torch.Tensor, torch.Tensor]]
) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return the plain LoRA of rank 2 r that a base-moving init has become.

    Args:
        model: The trained PEFT model.
        taken: What was moved out of the base, as `Initialised` holds it.

    Returns:
        PEFT's configuration, and tensors by PEFT's names: for the untouched base.
    """
    import copy

    import torch
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    config = copy.deepcopy(model.peft_config["default"])
    config.use_rslora = False
    config.rank_pattern, config.alpha_pattern = {}, {}
    config.r = 2 * config.r
    layers = lora_layers(model)
    for name, (a0, b0) in taken.items():
        key = f"base_model.model.{name}"
        a, b = state[f"{key}.lora_A.weight"], state[f"{key}.lora_B.weight"]
        state[f"{key}.lora_A.weight"] = torch.cat([a, a0.to(a)], 0)
        state[f"{key}.lora_B.weight"] = torch.cat([b, -b0.to(b)], 1)
        rank = 2 * len(a)
        config.rank_pattern[name] = rank
        config.alpha_pattern[name] = rank * layers[name].scaling["default"]
    if len(set(config.rank_pattern.values())) == 1:  # plain numbers say it, too
        config.r = next(iter(config.rank_pattern.values()))
        config.lora_alpha = next(iter(config.alpha_pattern.values()))
        config.rank_pattern, config.alpha_pattern = {}, {}
    return config, state
