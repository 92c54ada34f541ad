"""Decoders as graphs, by the model builder of ONNX Runtime GenAI.

The builder writes each architecture it knows as a graph of fused nodes (attention with
its cache and rotary embedding, a norm with its residual) from a transformers folder. It
computes in fp32 on a CPU. A matrix of weights is one ``MatMul``, which the quantizer of
ONNX Runtime turns into a ``MatMulNBits``. An embedding that is tied to the output layer
is stored once: as float behind a ``Transpose``, or as codes that
``GatherBlockQuantized`` reads.

The output layer sees the last position only (``prune_lm_head``): of SmolLM2's products
with a prompt it is a fifth, and a continuation needs no other. `whole` gives the graph
that sees all, for what is measured over every position; both read the same tensors.

Its attention on a CPU wants heads of 16, 32, 48 … features. It puts a directory of its
own on ``sys.path``.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from loralab.errors import QuantizationError
from loralab.quantization.linear import AffineLinear
from loralab.quantization.onnx_graph import (
    MODEL,
    Piece,
    annotate,
    load,
    put,
    save,
    silent,
)
from loralab.quantization.storage import Source, Tell

CONFIG = "genai_config.json"
HEAD = "/lm_head/MatMul"
PRUNING = ("/lm_head/prune/Gather", "/lm_head/prune/Unsqueeze")
RENAMED = {"dense": "o_proj", "out_proj": "o_proj"}
TABLES, LAYER, NODE = 3_000, 5_400, 330
"""Bytes of a graph without tensors: in all, of a layer, of a quantized node more."""


def linears(model: Any) -> dict[str, Any]:
    """Return the modules that are products with a matrix, by path."""
    kinds = (nn.Linear, AffineLinear)
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds)}


def shapes(model: Any, names: Sequence[str]) -> list[tuple[int, int]]:
    """Return O and I of modules."""
    found = (linears(model)[name] for name in names)
    return [(module.out_features, module.in_features) for module in found]


def stored_matrix(module: Any) -> Any:
    """Return the tensor that a module keeps its matrix in: the weight, or its codes."""
    return module.codes if isinstance(module, AffineLinear) else module.weight


def output_layer(model: Any) -> str:
    """Return the path of the output layer."""
    head = model.get_output_embeddings()
    found: str = next(n for n, module in model.named_modules() if module is head)
    return found


def tied(model: Any) -> bool:
    """Return whether the output layer's matrix is the embedding's."""
    return bool(model.config.tie_word_embeddings)


def node_of(name: str, head: str, packed: bool) -> list[str]:
    """Return the nodes of the float graph that hold a module's matrix.

    Args:
        name: Path of a linear module.
        head: Path of the output layer.
        packed: Whether the builder puts q, k and v into one node.
    """
    if name == head:
        return [HEAD]
    layer = re.search(r"\.(\d+)\.", name)
    if layer is None:
        return []
    leaf = name.rpartition(".")[2]
    part = "attn" if "attn" in name or "attention" in name else "mlp"
    leaves = [RENAMED.get(leaf, leaf) if part == "attn" else leaf]
    if leaf == "gate_up_proj":
        leaves = ["gate_proj", "up_proj"]
    elif packed and leaf in ("q_proj", "k_proj", "v_proj"):
        leaves = ["qkv_proj"]
    return [f"/model/layers.{layer[1]}/{part}/{leaf}/MatMul" for leaf in leaves]


def _packed(model: Any, quantized: Sequence[str]) -> bool:
    """Return whether q, k and v of every layer are to be stored alike."""
    chosen = set(quantized)
    ends = ("q_proj", "k_proj", "v_proj")
    alike: dict[str, set[bool]] = {}
    for name in linears(model):
        stem, _, leaf = name.rpartition(".")
        if leaf in ends:
            alike.setdefault(stem, set()).add(name in chosen)
    return all(len(found) == 1 for found in alike.values())


def _check(model: Any, head: str) -> None:
    config = model.config
    size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    if head != "causal-lm":
        raise QuantizationError(f"GenAI's builder writes decoders, not {head}")
    if size % 16:
        raise QuantizationError(
            f"attention heads of {size} features do not run in ONNX Runtime",
            why="GroupQueryAttention on a CPU wants a multiple of 16",
            fix="use another format for this model",
        )


def build(
    source: Source,
    folder: Path,
    tell: Tell,
    *,
    precision: str = "fp32",
    quantized: Sequence[str] = (),
    options: Sequence[str] = (),
) -> None:
    """Write a decoder's graph, its tensors and GenAI's configuration.

    Args:
        source: The model; a module on affine codes is written dequantized.
        folder: Where to.
        tell: Told of the steps.
        precision: ``fp32`` or ``int4``.
        quantized: Modules that the builder is to quantize.
        options: Further options of the builder, ``key=value``.

    Raises:
        QuantizationError: the builder does not know this architecture.
    """
    model = source.model
    _check(model, source.head)
    head, packed = output_layer(model), _packed(model, quantized)
    nodes = {name: node_of(name, head, packed) for name in linears(model)}
    left = {n for name in set(nodes) - set(quantized) for n in nodes[name]}
    if tied(model) and head not in quantized:
        left.add("/model/embed_tokens/Gather")
    extra = [*options, f"fuse_qkv={str(packed).lower()}", "hf_token=false"]
    extra.append("prune_lm_head=true")
    extra += [f"nodes_to_exclude={','.join(sorted(left))}"] if left else []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tell("writing the model for the builder", 0, 3)
        with silent():
            model.save_pretrained(work / "from", state_dict=plain_state(model))
            source.processor.save_pretrained(work / "from")
        tell("building the graph", 1, 3)
        with silent():
            _run(work, precision, extra)
        for file in (MODEL, f"{MODEL}.data", CONFIG):
            shutil.move(work / "to" / file, folder / file)
    tell("checking what was written", 2, 3)
    made = load(folder)
    annotate(made, _pieces(model, nodes, made))
    save(made, folder)
    _finish_config(source, folder)
    tell("written", 3, 3)


def plain_state(model: Any) -> dict[str, Any]:
    """Return a model's state with the values of affine codes for the codes."""
    affine = {n: m for n, m in linears(model).items() if isinstance(m, AffineLinear)}
    inside = {f"{n}.{key}" for n in affine for key in ("codes", "scales", "zeros")}
    state = {k: v for k, v in model.state_dict().items() if k not in inside}
    return {**state, **{f"{n}.weight": m.weight for n, m in affine.items()}}


def _run(work: Path, precision: str, options: Sequence[str]) -> None:
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    here, there, cache = (str(work / part) for part in ("from", "to", "cache"))
    try:
        asked = parse_extra_options(
            None, here, there, precision, "cpu", cache, list(options)
        )
        create_model(None, here, there, precision, "cpu", cache, **asked)
    except NotImplementedError as error:
        raise QuantizationError(
            "GenAI's builder does not write this architecture", why=str(error)
        ) from None


def _pieces(
    model: Any, nodes: dict[str, list[str]], made: Any
) -> dict[str, list[Piece]]:
    """Return which rows of which nodes each module is; of q, k and v one by one."""
    there = {n.name.removesuffix("_Q4") for n in made.graph.node}
    found: dict[str, list[Piece]] = {}
    filled: dict[str, int] = {}
    for name, module in linears(model).items():
        parts = [node for node in nodes[name] if node in there]
        if len(parts) != len(nodes[name]) or not parts:
            continue
        rows = module.out_features // len(parts)
        for node in parts:
            first = filled.get(node, 0)
            filled[node] = first + rows
            found.setdefault(name, []).append((node, first, first + rows))
    return found


def _finish_config(source: Source, folder: Path) -> None:
    """Let GenAI stop where the tokenizer's answers end, as loralab's engines all do."""
    file = folder / CONFIG
    said = json.loads(file.read_text(encoding="utf-8"))
    said["model"]["eos_token_id"] = source.processor.eos_token_id
    said["model"]["pad_token_id"] = source.processor.pad_token_id
    if said["model"]["pad_token_id"] is None:
        said["model"]["pad_token_id"] = source.processor.eos_token_id
    file.write_text(json.dumps(said, indent=2), encoding="utf-8")
    source.model.config.save_pretrained(folder)


def whole(model: Any) -> Any:
    """Return a decoder's graph with logits at every position: B × T × V, not B × 1 × V.

    Args:
        model: The graph, without the tensors beside it; it is left as it is.
    """
    made = type(model).FromString(model.SerializeToString())
    nodes = {node.name: node for node in made.graph.node}
    if PRUNING[0] not in nodes:
        return made
    gather, unsqueeze = (nodes[name] for name in PRUNING)
    for node in made.graph.node:
        for i, name in enumerate(node.input):
            if name == unsqueeze.output[0]:
                node.input[i] = gather.input[0]
    put(made.graph.node, [n for n in made.graph.node if n.name not in PRUNING])
    shapes_told = made.graph.value_info  # those of one position would be believed
    put(shapes_told, [v for v in shapes_told if not v.name.startswith("/lm_head/")])
    for output in made.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_param = "sequence_length"
    return made


def float_bytes(model: Any, left_out: Sequence[str] = ()) -> int:
    """Return the bytes of the float tensors of a decoder's graph.

    Exact but for biases that are all zero, which the builder leaves out.

    Args:
        model: The model; the meta device will do.
        left_out: Modules whose matrices are stored otherwise.
    """
    out = {id(stored_matrix(linears(model)[name])) for name in left_out}
    kept = {id(p): p for p in model.parameters() if id(p) not in out}
    count: int = sum(p.numel() for p in kept.values())
    count += sum(
        module.out_features * module.in_features
        for name, module in linears(model).items()
        if isinstance(module, AffineLinear) and name not in left_out
    )
    return 4 * (count + _rotary(model.config))


def _rotary(config: Any) -> int:
    """Return the entries of the two tables of the rotary embedding."""
    size = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    turned = (getattr(config, "rope_parameters", None) or {}).get(
        "partial_rotary_factor", 1
    )
    return 2 * int(config.max_position_embeddings) * (int(size * turned) // 2)


def graph_bytes(model: Any, quantized: Sequence[str] = ()) -> int:
    """Return about the bytes of a decoder's graph without its tensors."""
    layers = int(model.config.num_hidden_layers)
    return TABLES + LAYER * layers + NODE * len(quantized)
