r"""Facts about architectures, and which modules an adapter goes on.

A pattern is a regular expression that must match the end of a module's path, from a dot
on: ``q_proj`` matches ``model.layers.0.self_attn.q_proj``, and
``attention\.output\.dense`` tells BERT's attention output from its MLP output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from loralab.errors import AdapterError, nearest

PRESETS = ("attention", "qv", "mlp", "all-linear")


@dataclass(frozen=True)
class Family:
    """The patterns of a family of architectures, by preset.

    Attributes:
        attention: Every projection of attention.
        mlp: Every projection of the feed-forward block.
        qv: Query and value; None where they are fused with the key in one module.
        fused: Last name of a module -> how many projections it holds.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    qv: tuple[str, ...] | None = None
    fused: dict[str, int] = field(default_factory=dict)


_LLAMA = Family(
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("q_proj", "v_proj"),
)
_PHI = Family(
    ("q_proj", "k_proj", "v_proj", r"self_attn\.dense"),
    ("fc1", "fc2"),
    ("q_proj", "v_proj"),
)
_PHI3 = Family(
    ("qkv_proj", "o_proj"),
    ("gate_up_proj", "down_proj"),
    fused={"qkv_proj": 3, "gate_up_proj": 2},
)
_GPT2 = Family(
    ("c_attn", r"attn\.c_proj"), ("c_fc", r"mlp\.c_proj"), fused={"c_attn": 3}
)
_NEOX = Family(
    ("query_key_value", r"(?:self_)?attention\.dense"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    fused={"query_key_value": 3},
)
_BART = Family(
    ("q_proj", "k_proj", "v_proj", "out_proj"), ("fc1", "fc2"), ("q_proj", "v_proj")
)
_BERT_MLP = (r"intermediate\.dense", r"layer\.\d+\.output\.dense")
_BERT = Family(
    ("query", "key", "value", r"attention\.output\.dense"),
    _BERT_MLP,
    ("query", "value"),
)
_DEBERTA = Family(
    ("query_proj", "key_proj", "value_proj", r"attention\.output\.dense"),
    _BERT_MLP,
    ("query_proj", "value_proj"),
)
_MPNET = Family(
    (r"attn\.q", r"attn\.k", r"attn\.v", r"attn\.o"),
    _BERT_MLP,
    (r"attn\.q", r"attn\.v"),
)
_DISTILBERT = Family(
    ("q_lin", "k_lin", "v_lin", "out_lin"), ("lin1", "lin2"), ("q_lin", "v_lin")
)
_ALBERT = Family(
    ("query", "key", "value", r"attention\.dense"),
    ("ffn", "ffn_output"),
    ("query", "value"),
)
_MODERNBERT = Family(
    ("Wqkv", r"attn\.Wo"), ("Wi", r"mlp\.Wo"), fused={"Wqkv": 3, "Wi": 2}
)
# self- and cross-attention alike; wi is wi_0 and wi_1 where the block is gated
_T5 = Family(("q", "k", "v", "o"), (r"wi(?:_[01])?", "wo"), ("q", "v"))

_VIT = Family(
    ("q_proj", "k_proj", "v_proj", "o_proj"), ("fc1", "fc2"), ("q_proj", "v_proj")
)
_TIMM = Family(("qkv", r"attn\.proj"), ("fc1", "fc2"), fused={"qkv": 3})

ENCODERS = (
    *("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert"),
    *("mpnet", "roberta", "xlm-roberta"),
)
"""Architectures that read in both directions and write nothing."""

_CROSS = re.compile(
    r".*\.(?:EncDecAttention|encoder_attn|(?:crossattention|cross_attn)(?:\.self)?)"
    r"\.(?:[kv]|[kv]_proj|key|value|c_attn)"
)
"""The keys and values of a decoder's attention to its encoder."""

FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "phi": _PHI,
    "phi3": _PHI3,
    "gpt2": _GPT2,
    "gpt_neox": _NEOX,
    "bloom": _NEOX,
    "falcon": _NEOX,
    "opt": _BART,
    "bart": _BART,
    "bert": _BERT,
    "roberta": _BERT,
    "electra": _BERT,
    "xlm-roberta": _BERT,
    "deberta-v2": _DEBERTA,
    "mpnet": _MPNET,
    "distilbert": _DISTILBERT,
    "albert": _ALBERT,
    "modernbert": _MODERNBERT,
    "t5": _T5,
    "vit": _VIT,
    "deit": _VIT,
    "dinov2": _VIT,
    "dinov2_with_registers": _VIT,
    "clip_vision_model": _BART,
    "timm_wrapper": _TIMM,
}
"""transformers' ``model_type`` -> patterns."""


@dataclass(frozen=True)
class Facts:
    """What is known of a loaded model.

    Attributes:
        model_type: transformers' name of the architecture.
        parameters: All parameters of the base, tied ones once.
        layers: Hidden layers, of encoder and decoder together. (ALBERT's share one
            set of weights.)
        hidden: Width of the residual stream.
        vocabulary: Rows of the input embedding; 0 of a vision model.
        linear: Paths of the linear modules outside the head, in order.
        fused: Last name of a module -> how many projections are fused in it: of
            ``c_attn`` query, key and value. Empty too where no family is known.
        tied: The output layer is the input embedding.
        conv1d: Last names of the modules that store their weight transposed, in × out
            (transformers' ``Conv1D``).
        encoder_decoder: An encoder, and a decoder that attends to it.
    """

    model_type: str
    parameters: int
    layers: int
    hidden: int
    vocabulary: int
    linear: tuple[str, ...]
    fused: dict[str, int]
    tied: bool
    conv1d: tuple[str, ...]
    encoder_decoder: bool


def facts_of(model: Any, new_modules: Sequence[str] = ()) -> Facts:
    """Return the facts of a transformers model.

    Args:
        model: A `PreTrainedModel` without adapter.
        new_modules: Newly initialised modules (a head); no targets of an adapter.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    modules = {
        name: module
        for name, module in _body(model)
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and not _within(name, new_modules)
    }
    sees = model.main_input_name == "pixel_values"
    config = _own_config(model, sees)
    family = FAMILIES.get(config.model_type)
    last = {name.rpartition(".")[2] for name in modules}
    transposed = [n for n, module in modules.items() if isinstance(module, Conv1D)]
    return Facts(
        model_type=config.model_type,
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers + _decoder_layers(config),
        hidden=config.hidden_size,
        vocabulary=0 if sees else config.vocab_size,
        linear=tuple(modules),
        fused={n: k for n, k in family.fused.items() if n in last} if family else {},
        tied=output is not None
        and output.weight is model.get_input_embeddings().weight,
        conv1d=tuple(sorted({name.rpartition(".")[2] for name in transposed})),
        encoder_decoder=config.is_encoder_decoder,
    )


def reads_source(name: str) -> bool:
    """Return whether a module of an encoder-decoder reads the source, not the target.

    Those of the encoder do, and the keys and values of the attention to it.
    """
    return "decoder" not in name.split(".") or _CROSS.fullmatch(name) is not None


def _own_config(model: Any, sees: bool) -> Any:
    """Return the configuration of the part that is adapted: CLIP has two."""
    if sees:
        return getattr(model.config, "vision_config", model.config)
    return model.config.get_text_config()


def kind_of(facts: Facts) -> str:
    """Return what a model is: ``encoder``, ``decoder`` or ``vision``."""
    if not facts.vocabulary:
        return "vision"
    return "encoder" if facts.model_type in ENCODERS else "decoder"


def quantized_as(model: Any) -> str | None:
    """Return ``nf4``, ``int8`` or ``affine`` if a model has such linear modules."""
    formats = {
        "Linear4bit": "nf4", "Linear8bitLt": "int8", "AffineLinear": "affine",
    }  # fmt: skip
    found = {formats.get(type(module).__name__) for module in model.modules()}
    return next((name for name in formats.values() if name in found), None)


def parameter_count(model: Any) -> int:
    """Return all parameters; of a quantized weight its values, not its codes."""
    total: int = sum(p.numel() for p in model.parameters())
    packed = ("Linear4bit", "Linear8bitLt", "AffineLinear")
    for module in model.modules():
        own = module._parameters.get("weight")
        # PEFT's layers around them have the same names, and no weight
        if type(module).__name__ in packed and (own is not None or module._buffers):
            total += module.in_features * module.out_features
            total -= 0 if own is None else own.numel()
    return total


def norm_names(model: Any, new_modules: Sequence[str] = ()) -> list[str]:
    """Return the paths of the normalisation layers that have a weight."""
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__.endswith(("LayerNorm", "RMSNorm"))
        and getattr(module, "weight", None) is not None
        and not _within(name, new_modules)
    ]


def biased_names(model: Any, new_modules: Sequence[str] = ()) -> list[str]:
    """Return the paths of the modules that have a bias."""
    return [
        name
        for name, module in model.named_modules()
        if getattr(module, "bias", None) is not None and not _within(name, new_modules)
    ]


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == m or name.startswith(f"{m}.") for m in modules)


def _body(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules below the body; of T5, which has no module for it, all."""
    prefix = f"{model.base_model_prefix}."
    for name, module in model.named_modules():
        if model.base_model is model or name.startswith(prefix):
            yield name, module


def _decoder_layers(config: Any) -> int:
    """Return the decoder's layers where `num_hidden_layers` counts the encoder's."""
    if not config.is_encoder_decoder:
        return 0
    # T5's name for them, or BART's
    own = getattr(config, "num_decoder_layers", None)
    return int(config.decoder_layers if own is None else own)


def target_patterns(targets: str | Sequence[str], facts: Facts) -> list[str]:
    """Return the patterns of a preset, or the user's own.

    Raises:
        AdapterError: the preset is unknown, this architecture has no entry for it, or
            it is ``qv`` where one module holds query, key and value.
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
    if targets == "qv" and family.qv is None:
        whole = next(name for name in family.attention if name in family.fused)
        raise AdapterError(
            "preset 'qv' cannot adapt query and value alone",
            where="peft.params.target_modules",
            why=f"{facts.model_type} fuses query, key and value in {whole}",
            fix=f"write attention, or [{whole}] for all three",
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
