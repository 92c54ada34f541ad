"""A base's checkpoint on disk: its files, and which tensor an adapter's module is.

A module is found by its path; a checkpoint may leave out or add the leading name of the
model's body (``bert.``, ``transformer.``), as transformers allows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.errors import ExportError
from loralab.lowrank.files import AdapterFolder, Kind

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONV1D = {
    "gpt2": ("c_attn", "c_proj", "c_fc", "q_attn"),
    "decision_transformer": ("c_attn", "c_proj", "c_fc", "q_attn"),
    "imagegpt": ("c_attn", "c_proj", "c_fc", "q_attn"),
    "openai-gpt": ("c_attn", "c_proj", "c_fc"),
    "clvp": ("c_fc", "c_proj"),
    "clvp_decoder": ("c_fc", "c_proj"),
}
"""Model type -> layers whose weight is [in, out]: transformers' `Conv1D`."""
INPUTS = (
    *(".embed_tokens.weight", ".wte.weight", ".word_embeddings.weight"),
    *(".word_embedding.weight", ".shared.weight", ".tok_embeddings.weight"),
    *(".tokens_embed.weight", ".embed_in.weight", ".embeddings.weight"),
)
"""What the weight is called that has a row for each word of the vocabulary."""
LANGUAGE = ("CausalLM", "LMHead", "MaskedLM", "ConditionalGeneration")
"""What the class of a model with an output over the vocabulary is called."""
OUTPUTS = ("lm_head.weight", "embed_out.weight", "decoder.weight")


@dataclass(frozen=True)
class Target:
    """Where a module's update goes.

    Attributes:
        module: Path in the adapter.
        transposed: Whether the weight is [in, out].
    """

    module: str
    transposed: bool


def read_config(base: Path) -> dict[str, Any]:
    """Return the base's configuration, which says that it is no quantized one.

    Raises:
        ExportError: no configuration, or that of a quantized base.
    """
    file = base / "config.json"
    try:
        config = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ExportError("cannot be read", where=str(file), why=str(error)) from None
    if quantized := config.get("quantization_config"):
        raise ExportError(
            f"the base is quantized ({quantized.get('quant_method', 'unnamed')})",
            where=str(file),
            why="an update cannot be added to codes",
            fix="bake into the float base, then quantize",
        )
    return config


def shards_of(base: Path) -> list[Path]:
    """Return the base's weight files, those of the index or the single one.

    Raises:
        ExportError: it has none of safetensors, or a broken index.
    """
    if not (base / INDEX).exists():
        if (base / SINGLE).exists():
            return [base / SINGLE]
        raise ExportError(
            f"no {SINGLE} and no {INDEX}",
            where=str(base),
            fix="only safetensors are read: load the base once and save it again",
        )
    try:
        content = json.loads((base / INDEX).read_text(encoding="utf-8"))
        names = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ExportError(
            "cannot be read", where=str(base / INDEX), why=repr(error)
        ) from None
    return [base / Path(name).name for name in names]


def targets_of(
    adapter: AdapterFolder,
    shapes: Mapping[str, tuple[int, ...]],
    config: Mapping[str, Any],
    base: Path,
    names: Mapping[str, str],
) -> dict[str, Target]:
    """Return the tensor of every module that the adapter changes.

    Args:
        adapter: A plain LoRA.
        shapes: Of the base's tensors.
        config: The base's.
        base: Its folder, for the errors.
        names: Module -> tensor, where the checkpoint names it otherwise.

    Raises:
        ExportError: no such tensor or one of another shape, or it is shared.
    """
    found: dict[str, Target] = {}
    tied = tied_rows(config, shapes)
    for module, stored in adapter.modules.items():
        named = names.get(module, "")
        name = named if named in shapes else _tensor(module, shapes, base)
        if shapes[name][0] in tied or name in found:
            raise shared(module, base)
        flipped = _transposed(module, stored.kind, stored.shape, shapes[name], config)
        if flipped is None:
            raise ExportError(
                f"{name} is {list(shapes[name])}, and the update of {module} "
                f"{list(stored.shape)}",
                where=str(base),
                why="the adapter belongs to another base",
            )
        found[name] = Target(module, flipped)
    return found


def shared(module: str, base: Path) -> ExportError:
    """Return the refusal of a module whose weight is another layer's too."""
    return ExportError(
        f"{module} shares its weight with another layer",
        where=str(base),
        why="one tensor cannot hold the update of one and not of the other",
        fix="leave that layer out of the merge, or use the adapter unmerged",
    )


def tied_rows(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> set[int]:
    """Return the vocabulary's size if input and output share their weight.

    A configuration that does not say it means yes for a language model whose checkpoint
    has no weight for the output. One that leaves the size at its default has it in the
    rows of the input's weight. The decoder of a composite model ties its own.
    """
    inner = config.get("decoder")
    rows = tied_rows(inner, shapes) if isinstance(inner, Mapping) else set()
    text = config.get("text_config") or config
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings"))
    if tied is None:
        made_for = " ".join(config.get("architectures") or ())
        speaks = any(word in made_for for word in LANGUAGE)
        tied = speaks and not any(name.endswith(OUTPUTS) for name in shapes)
    if not tied:
        return rows
    if size := text.get("vocab_size"):
        return {*rows, size}
    return rows | {shapes[name][0] for name in shapes if f".{name}".endswith(INPUTS)}


def _tensor(module: str, names: Mapping[str, Any], base: Path) -> str:
    """Return the name of a module's weight in the checkpoint."""
    parts = f"{module}.weight".split(".")
    for start in range(len(parts) - 1):
        if (name := ".".join(parts[start:])) in names:
            return name
    longer = [name for name in names if name.endswith(f".{module}.weight")]
    if len(longer) == 1:
        return longer[0]
    raise ExportError(
        f"{'several weights fit' if longer else 'no weight of'} {module}",
        where=str(base),
        why="another base, or one whose files name its weights otherwise than "
        "transformers does; a tied weight is not stored at all",
        fix="tell the weights' names, or load the base and merge with PEFT",
    )


def _transposed(
    module: str,
    kind: Kind,
    update: tuple[int, int],
    weight: tuple[int, ...],
    config: Mapping[str, Any],
) -> bool | None:
    """Tell whether a weight is [in, out]; None if the update does not fit it."""
    out, into = update
    if kind.name == "convolution":
        return False if weight == (out, *kind.inner) else None
    flipped = kind.transposed or module.rpartition(".")[2] in _conv1d(config, module)
    return flipped if weight == ((into, out) if flipped else (out, into)) else None


def _conv1d(config: Mapping[str, Any], module: str) -> set[str]:
    """Return the layers that are Conv1D in the model that a module is in.

    A composite model has a configuration for each of those inside it; where the path
    begins with the name of one, as in ``decoder.transformer.wte``, that one decides.
    """
    name, _, rest = module.partition(".")
    if isinstance(part := config.get(name), Mapping):
        return _conv1d(part, rest)
    inner = [part for part in config.values() if isinstance(part, Mapping)]
    layers = set(CONV1D.get(str(config.get("model_type")), ()))
    return layers.union(*(_conv1d(part, "") for part in inner))
