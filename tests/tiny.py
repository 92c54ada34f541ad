"""Tiny random models of every class loralab loads: hidden 32, 2 layers, ≤ 300 tokens.

They have the class, the config, the weight names and the kind of tokenizer of the real
models, so what is asserted of them holds for those; their answers are noise.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from loralab.models.quiet import quiet_libraries

HIDDEN, INNER, LAYERS, HEADS, POSITIONS, VOCABULARY = 32, 48, 2, 4, 512, 300

NAMES = ["the old cat", "a small dog", "my sister", "the teacher", "our cook"]
VERBS = ["sees", "likes", "finds", "reads about", "never buys", "asks for"]
THINGS = ["seven red apples", "the long river", "a new book", "good bread", "snow"]
WHEN = ["today", "at night", "in 1984", "before lunch", "every week"]
SENTENCES = [
    f"{who} {verb} {what} {when}.".capitalize()
    for who, verb, what, when in itertools.product(NAMES, VERBS, THINGS, WHEN)
]

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

# style of tokenizer -> special tokens in the order of their ids
BYTES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
LLAMA = {"bos_token": "<s>", "eos_token": "</s>"}  # no pad
QWEN = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
GPT = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
BERT = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ROBERTA = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
    "cls_token": "<s>",
    "sep_token": "</s>",
}
T5 = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}

_COMMON = {
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2, "head_dim": 8}
_T5 = {
    "d_model": HIDDEN,
    "d_kv": 8,
    "d_ff": INNER,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
}
_BART = {
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_ffn_dim": INNER,
    "decoder_ffn_dim": INNER,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "init_std": 0.2,
}

# kind -> model type, class, style of tokenizer, special tokens, config
KINDS = {
    "llama": ("llama", "LlamaForCausalLM", "bytes", LLAMA, _GROUPED),
    "mistral": ("mistral", "MistralForCausalLM", "bytes", LLAMA, _GROUPED),
    "qwen2": (
        "qwen2",
        "Qwen2ForCausalLM",
        "bytes",
        QWEN,
        {**_COMMON, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "qwen3": (
        "qwen3",
        "Qwen3ForCausalLM",
        "bytes",
        QWEN,
        {**_GROUPED, "tie_word_embeddings": True},
    ),
    "gemma2": ("gemma2", "Gemma2ForCausalLM", "bytes", BYTES, _GROUPED),
    "phi": ("phi", "PhiForCausalLM", "bytes", GPT, _COMMON),
    "phi3": ("phi3", "Phi3ForCausalLM", "bytes", BYTES, _COMMON),
    "gpt2": ("gpt2", "GPT2LMHeadModel", "bytes", GPT, {**_COMMON, "n_inner": INNER}),
    "gpt_neox": ("gpt_neox", "GPTNeoXForCausalLM", "bytes", GPT, _COMMON),
    "opt": (
        "opt",
        "OPTForCausalLM",
        "bytes",
        BYTES,
        {
            **_COMMON,
            "ffn_dim": INNER,
            "word_embed_proj_dim": HIDDEN,
            "init_std": 0.2,
        },
    ),
    "bloom": ("bloom", "BloomForCausalLM", "bytes", BYTES, _COMMON),
    "falcon": ("falcon", "FalconForCausalLM", "bytes", GPT, _COMMON),
    "bert": ("bert", "BertForPreTraining", "wordpiece", BERT, _COMMON),
    "electra": (
        "electra",
        "ElectraForPreTraining",
        "wordpiece",
        BERT,
        {**_COMMON, "embedding_size": 16},
    ),
    "distilbert": (
        "distilbert",
        "DistilBertForMaskedLM",
        "wordpiece",
        BERT,
        {**_COMMON, "hidden_dim": INNER},
    ),
    "mpnet": ("mpnet", "MPNetForMaskedLM", "wordpiece", BERT, _COMMON),
    "modernbert": (
        "modernbert",
        "ModernBertForMaskedLM",
        "bytes",
        BERT,
        {**_COMMON, "local_attention": 8},
    ),
    "roberta": ("roberta", "RobertaForMaskedLM", "bytes", ROBERTA, _COMMON),
    "xlm-roberta": (
        "xlm-roberta",
        "XLMRobertaForMaskedLM",
        "unigram",
        ROBERTA,
        _COMMON,
    ),
    "albert": (
        "albert",
        "AlbertForPreTraining",
        "unigram",
        BERT,
        {**_COMMON, "embedding_size": 16},
    ),
    # the config of deberta-v3: relative positions, shared key
    "deberta-v2": (
        "deberta-v2",
        "DebertaV2ForMaskedLM",
        "unigram",
        BERT,
        {
            **_COMMON,
            "relative_attention": True,
            "position_biased_input": False,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
            "position_buckets": 16,
        },
    ),
    "t5": ("t5", "T5ForConditionalGeneration", "unigram", T5, _T5),
    "flan-t5": (
        "t5",
        "T5ForConditionalGeneration",
        "unigram",
        T5,
        {**_T5, "feed_forward_proj": "gated-gelu"},
    ),
    "bart": ("bart", "BartForConditionalGeneration", "bytes", ROBERTA, _BART),
}
CAUSAL = tuple(k for k, kind in KINDS.items() if "CausalLM" in kind[1] or k == "gpt2")
SEQ2SEQ = ("t5", "flan-t5", "bart")
ENCODERS = tuple(k for k in KINDS if k not in CAUSAL + SEQ2SEQ)


def tiny(kind: str, folder: Path, **other: int) -> Path:
    """Write a tiny model of a kind, with its tokenizer, and return the folder.

    Args:
        kind: A key of `KINDS`.
        folder: To be made.
        other: Sizes other than the kind's.
    """
    import torch
    import transformers

    model_type, name, style, special, sizes = KINDS[kind]
    sizes = {**sizes, **other}
    tokenizer = make_tokenizer(style, special)
    if kind in CAUSAL:
        tokenizer.chat_template = CHAT
    ids = {
        f"{role}_id": tokenizer.convert_tokens_to_ids(token)
        for role, token in special.items()
        if role not in ("unk_token", "mask_token")
    }
    ids.setdefault("bos_token_id", ids.get("cls_token_id"))
    ids.setdefault("eos_token_id", ids.get("sep_token_id"))
    if kind in SEQ2SEQ:  # T5 starts with pad, BART with eos
        start = ids["pad_token_id"] if model_type == "t5" else ids["eos_token_id"]
        ids["decoder_start_token_id"] = start
    if kind == "bart":
        ids["forced_eos_token_id"] = ids["eos_token_id"]
    config = transformers.AutoConfig.for_model(
        model_type, **{"pad_token_id": None, **sizes, **ids, "vocab_size": VOCABULARY}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, name)(config)
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):  # of zeros nothing would show
                torch.nn.init.normal_(parameter, std=0.1)
        if kind == "flan-t5":
            model.lm_head.weight = torch.nn.Parameter(
                torch.randn(VOCABULARY, HIDDEN) / HIDDEN**0.5
            )
    if kind in SEQ2SEQ:
        model.generation_config.decoder_start_token_id = ids["decoder_start_token_id"]
    with quiet_libraries():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    if kind == "flan-t5":
        _untie(folder / "config.json")
    return folder


def _untie(file: Path) -> None:
    """Write what the config of FLAN-T5 says; transformers' own T5 always says tied."""
    said = json.loads(file.read_text(encoding="utf-8"))
    del said["scale_decoder_outputs"]
    said["tie_word_embeddings"] = False
    file.write_text(json.dumps(said), encoding="utf-8")


def make_tokenizer(style: str, special: dict[str, str]):
    """Return a fast tokenizer of at most `VOCABULARY` tokens, trained on `SENTENCES`.

    Args:
        style: ``bytes`` (BPE over bytes, knows every text), ``wordpiece`` or
            ``unigram``.
        special: Role -> token, in the order of the ids.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokens = list(dict.fromkeys(special.values()))
    size = {"vocab_size": VOCABULARY, "special_tokens": tokens, "show_progress": False}
    if style == "bytes":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **size)
    elif style == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token=special["unk_token"]))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**size)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token=special["unk_token"], **size)
    made.train_from_iterator(SENTENCES, trainer)
    made.post_processor = _frame(special, made)
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def _frame(special: dict[str, str], made):
    """Return what puts the special tokens around a text, as the real one does."""
    from tokenizers.processors import TemplateProcessing

    first, last = special.get("cls_token"), special.get("sep_token")
    if first is None:  # LLaMA opens with <s>, T5 closes with </s>, GPT-2 does neither
        first = special.get("bos_token") if special is not GPT else None
        last = special["eos_token"] if special is T5 else None
    parts = [part for part in (first, "$A", last) if part]
    pair = [part for part in (first, "$A", last, "$B:1", f"{last}:1") if part]
    if last is None:
        pair = [*parts, "$B:1"]
    return TemplateProcessing(
        single=" ".join(parts),
        pair=" ".join(pair),
        special_tokens=[(t, made.token_to_id(t)) for t in (first, last) if t],
    )
