"""Tiny models that ONNX Runtime takes: attention heads of 16 features."""

import torch
import transformers

from loralab.models.architecture import facts_of
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics
from loralab.models.shape import put_head
from loralab.quantization.storage import Source
from loralab.registry import get
from tests.tiny import BERT, CHAT, LLAMA, VOCABULARY, make_tokenizer

CPU = Numerics("cpu", "fp32", "a test")
SIZES = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "initializer_range": 0.1,
}


def decoder(tied=True, **sizes):
    """Return a LLaMA and its tokenizer, whose pad token is its eos."""
    tokenizer = make_tokenizer("bytes", LLAMA)
    tokenizer.pad_token, tokenizer.chat_template = tokenizer.eos_token, CHAT
    config = transformers.LlamaConfig(
        **{**SIZES, "num_key_value_heads": 3, "vocab_size": VOCABULARY, **sizes},
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    return loaded(model, tokenizer, "causal-lm")


def encoder(name, head, **sizes):
    """Return a model of a class of transformers'."""
    cls = getattr(transformers, name)
    words = {} if "Image" in name else {"vocab_size": VOCABULARY}
    tokenizer = make_tokenizer("wordpiece", BERT)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(cls.config_class(**{**SIZES, **words, **sizes})).eval()
        for path, parameter in model.named_parameters():
            if path.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        if head == "feature-extraction":
            put_head(model, head, 3)
    return loaded(model, tokenizer, head)


def loaded(model, tokenizer, head):
    facts = facts_of(model, ("classifier", "qa_outputs", "probe"))
    return LoadedModel(model, tokenizer, head, facts, CPU, (), ".", None, "0" * 64)


def store(base, folder, name, **params):
    """Write a model in a format; returns the format, its params and what was stored."""
    folder.mkdir()
    form = get("storage format", name)
    settings = form.schema(**params)
    source = Source(base.model, base.processor, base.head, list(base.facts.linear))
    steps = []
    stored = form.target(settings, source, folder, lambda *step: steps.append(step))
    assert steps and steps[-1][1] == steps[-1][2]
    return form, settings, stored


def opened(folder):
    return get("engine", "onnx").target(folder, {}, CPU)
