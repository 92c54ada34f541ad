"""Embedded models are what their makers trained, tokenizer and all."""

from loralab.config import ModelConfig
from loralab.models.base import load_processor


def test_each_digit_is_a_token_and_spaces_before_it_are_whole():
    tokenizer = load_processor(ModelConfig(path="embedded:smollm2-135m-instruct"))
    tokens = tokenizer.tokenize("in  1984")
    assert tokens == ["in", "ĠĠ", "1", "9", "8", "4"]
