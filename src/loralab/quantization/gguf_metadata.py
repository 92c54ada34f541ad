"""The head of a GGUF file: a model's sizes and its tokenizer, as llama.cpp reads them.

The keys are those of llama.cpp's own converter. Token ids never come from here in
loralab (they come from the transformers tokenizer, in every engine); the vocabulary is
for everybody else who opens the file.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loralab.errors import QuantizationError
from loralab.quantization.gguf_layout import PERMUTED, head_width, rope_type

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_EDGE = r"[^\r\n\p{L}\p{N}]?"

# how a byte-level tokenizer cuts a text before it merges -> llama.cpp's name of it
CUTS = {
    "ByteLevel": "gpt-2",
    "Digits ByteLevel": "smollm",
    _SHORT + _LETTERS + r"|\p{N}{1,3}" + _REST: "llama-bpe",
    _SHORT + _LETTERS + r"|\p{N}" + _REST: "qwen2",
    f"{_EDGE}{_UPPER}*{_LOWER}+|{_EDGE}{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "tekken",
}

# llama.cpp's converter (MIT) knows a tokenizer by the ids that it gives this text. Read
# out of a GGUF file by transformers, SmolLM's has lost the cut at digits, and yet gives
# the ids of SmolLM's (they differ for two spaces before a digit, which are not in it)
PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n"
    "🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 3 33 333 3333 33333 "
    "333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, "
    "'D you like some tea? We'Ve a'lL"
)
PROBED = {
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
}

# what llama.cpp's converter takes for special in a token that is not marked so
_SEEM_SPECIAL = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")


def add_sizes(writer: Any, model: Any, kind: str) -> None:
    """Add what llama.cpp must know of the model.

    Args:
        writer: A ``GGUFWriter`` that knows its tensors.
        model: A transformers language model; the meta device will do.
        kind: That of most of its matrices.
    """
    import gguf

    config = model.config
    writer.add_type(gguf.GGUFType.MODEL)
    # the last part only: a path says where somebody keeps files. In capitals as the
    # converter has it: a "mistral" in small letters is what transformers cannot open
    name = Path(config._name_or_path or config.model_type).name
    writer.add_name(name.replace("-", " ").title())
    writer.add_size_label(gguf.size_label(*writer.get_total_parameter_count()))
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    # llama.cpp sees all of the past; a model with a window, only within the window
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    writer.add_context_length(min(window, config.max_position_embeddings))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_width(config))
    writer.add_value_length(head_width(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if rope_type(config) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    if writer.arch == PERMUTED:
        writer.add_rope_dimension_count(head_width(config))
    writer.add_vocab_size(model.get_input_embeddings().weight.shape[0])


def add_vocabulary(writer: Any, processor: Any, rows: int) -> None:
    """Add the tokenizer.

    Args:
        writer: A ``GGUFWriter``.
        processor: A fast transformers tokenizer.
        rows: Rows of the embedding; those without a token become ``[PAD…]``.

    Raises:
        QuantizationError: a tokenizer that llama.cpp cannot imitate.
    """
    import gguf

    said = json.loads(processor.backend_tokenizer.to_str())
    if said["model"]["type"] != "BPE":
        raise _unknown(f"its tokenizer is {said['model']['type']}, not BPE")
    pieces = bool(said["model"].get("byte_fallback"))
    tokens, kinds = _tokens(processor, rows, pieces)
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else _cut(processor, said))
    writer.add_token_list(tokens)
    if pieces:
        writer.add_token_scores(_scores(tokens, said["model"]["merges"]))
    writer.add_token_types(kinds)
    writer.add_add_space_prefix(processor.tokenize("a")[0] != "a")
    with TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        special = gguf.SpecialVocab(folder, load_merges=not pieces)
    special.add_special_token = _framed(processor)
    special.add_to_gguf(writer, quiet=True)


def _unknown(why: str) -> QuantizationError:
    return QuantizationError(
        "llama.cpp cannot cut a text as this tokenizer does",
        where="gguf",
        why=why,
        fix="take another storage format",
    )


def _cut(processor: Any, said: dict[str, Any]) -> str:
    """Return llama.cpp's name of what a byte-level tokenizer does before merging."""
    ids = str(processor.encode(PROBE))
    if found := PROBED.get(sha256(ids.encode()).hexdigest()):
        return found
    first = said["pre_tokenizer"] or {}
    parts = []
    for part in first.get("pretokenizers", [first]):
        if part.get("type") == "Split":
            parts.append(str(part["pattern"].get("Regex")))
        elif part.get("type") != "ByteLevel" or part["use_regex"]:
            parts.append(str(part.get("type")))
    cut = " ".join(parts)
    if cut not in CUTS:
        raise _unknown(f"it cuts by {cut!r}; known: {', '.join(CUTS.values())}")
    return CUTS[cut]


def _tokens(processor: Any, rows: int, pieces: bool) -> tuple[list[str], list[int]]:
    """Return every row's token and its kind."""
    from gguf import TokenType

    known = {index: token for token, index in processor.get_vocab().items()}
    added = processor.added_tokens_decoder
    tokens, kinds = [], []
    for index in range(rows):
        token, kind = known.get(index, f"[PAD{index}]"), TokenType.NORMAL
        if index not in known:
            kind = TokenType.UNUSED
        elif pieces and index == processor.unk_token_id:
            kind = TokenType.UNKNOWN
        elif index in added:
            named = token in _SEEM_SPECIAL or (token[:2], token[-2:]) == ("<|", "|>")
            special = added[index].special or named
            kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        elif pieces and len(token) == 6 and token.startswith("<0x"):
            kind = TokenType.BYTE
        tokens.append(token)
        kinds.append(int(kind))
    return tokens, kinds


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """Return −rank of the merge that makes a token: llama.cpp merges the highest."""
    rank: dict[str, int] = {}
    for index, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault("".join(pair), index)
    return [float(-rank.get(token, len(merges))) for token in tokens]


def _framed(processor: Any) -> dict[str, bool]:
    """Return which special tokens the tokenizer puts around a text, by its deeds."""
    framed = processor("a")["input_ids"]
    plain = processor("a", add_special_tokens=False)["input_ids"]
    around = len(framed) > len(plain)
    return {
        "bos": around and framed[0] == processor.bos_token_id,
        "eos": around and framed[-1] == processor.eos_token_id,
    }
