from copy import deepcopy

import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from tests.tiny import tiny
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from loralab import registry
from loralab.errors import ExportError, QuantizationError
from loralab.models.quiet import quiet_libraries
from loralab.quantization.gguf_layout import (
    encoded,
    layout,
    permute,
    rope_factors,
    unpermute,
)
from loralab.quantization.gguf_metadata import add_vocabulary
from loralab.quantization.storage import Source

ENTRY = registry.get("storage format", "gguf")
TYPES = ("f16", "q8_0", "q4_0", "q4_1")
KINDS = ("llama", "mistral", "qwen2")
FILE = "model.gguf"


def quiet(*_):
    pass


def linear(model):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]


def load(folder):
    with quiet_libraries():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A tiny model of a kind, once; `tied` is a llama whose output is its embedding."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("tiny") / kind
            tiny("llama" if kind == "tied" else kind, folder)
            model = load(folder)
            if kind == "tied":
                model.config.tie_word_embeddings = True
                model.lm_head.weight = model.model.embed_tokens.weight
            tokenizer = AutoTokenizer.from_pretrained(folder)
            made[kind] = Source(model, tokenizer, "causal-lm", linear(model))
        return made[kind]

    return get


def stored(source, folder, **params):
    given = ENTRY.schema(**params)
    return given, ENTRY.target(given, source, folder, quiet)


def tensors(folder):
    return {t.name: t for t in GGUFReader(folder / FILE).tensors}


def value(tensor):
    return torch.tensor(dequantize(tensor.data, tensor.tensor_type))


@pytest.mark.parametrize("kind", [*KINDS, "tied"])
@pytest.mark.parametrize("kind_of_weights", TYPES)
def test_what_is_predicted_is_written_and_what_is_written_is_read(
    sources, tmp_path, kind, kind_of_weights
):
    source = sources(kind)
    params, made = stored(source, tmp_path, type=kind_of_weights)
    size = (tmp_path / FILE).stat().st_size
    assert made.files == {FILE: size}
    predict = ENTRY.facts["predict"]
    assert predict(params, source.model, source.names, source.processor) == size
    found = dict(ENTRY.facts["values"](params, tmp_path))
    assert set(found) == set(source.names)
    for name, values in found.items():
        weight = source.model.get_submodule(name).weight
        assert torch.equal(values, ENTRY.facts["rounded"](params, weight))
        change = (values - weight).abs().max()
        assert 0 < change <= 0.2 * weight.abs().max()


@pytest.mark.parametrize("kind", [*KINDS, "tied"])
@pytest.mark.parametrize("kind_of_weights", TYPES)
def test_transformers_opens_it_and_computes_the_same(
    sources, tmp_path, kind, kind_of_weights
):
    source = sources(kind)
    params, _ = stored(source, tmp_path, type=kind_of_weights)
    with quiet_libraries():
        again = AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file=FILE, dtype=torch.float32
        ).eval()
        config = source.model.config
        expected = type(source.model)(config).eval()
    expected.load_state_dict(source.model.state_dict())
    for name in source.names:
        module = expected.get_submodule(name)
        module.weight.data = ENTRY.facts["rounded"](params, module.weight)
    held = tensors(tmp_path)
    expected.get_input_embeddings().weight.data = value(held["token_embd.weight"])
    tied = kind in ("tied", "qwen2")
    assert ("output.weight" not in held) == tied
    if not tied:
        expected.lm_head.weight.data = value(held["output.weight"])
    ids = torch.randint(5, 250, (2, 24))
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected(ids).logits)


def test_qwen3_keeps_the_norms_of_its_heads(sources, tmp_path):
    source = sources("qwen3")
    params, made = stored(source, tmp_path, type="q4_0")
    held = tensors(tmp_path)
    norm = source.model.model.layers[1].self_attn.q_norm.weight
    assert torch.equal(value(held["blk.1.attn_q_norm.weight"]), norm.detach())
    predict = ENTRY.facts["predict"]
    size = predict(params, source.model, source.names, source.processor)
    assert made.bytes == size


def test_bytes_of_the_tensors_by_hand(sources):
    source = sources("llama")  # hidden 32, inner 48, 300 tokens, 2 layers, 2 of 4 heads
    matrices = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 32 * 48 * 2)  # with rows of 32
    down, embedding = 2 * 48 * 32, 300 * 32
    norms = 5 * 32 * 4
    expected = {
        "f16": 2 * (matrices + down + 2 * embedding),
        "q8_0": (matrices + 2 * embedding) // 32 * 34 + 2 * down,
        "q4_0": (matrices + embedding) // 32 * 18 + embedding // 32 * 34 + 2 * down,
        "q4_1": (matrices + embedding) // 32 * 20 + embedding // 32 * 34 + 2 * down,
    }
    for kind, size in expected.items():
        found = layout(source.model, source.names, kind, "auto")
        assert sum(t.nbytes for t in found) == size + norms


def test_shapes_are_enough_to_predict_the_weights(sources):
    source = sources("llama")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(source.model.config)
    params, predict = ENTRY.schema(), ENTRY.facts["predict"]
    exact = predict(params, source.model, source.names, source.processor)
    assert predict(params, empty, source.names, source.processor) == exact
    # without a tokenizer its 300 tokens are reckoned at the mean of a large one's
    assert predict(params, empty, source.names) == pytest.approx(exact, abs=300 * 30)


def test_a_row_that_32_does_not_divide_stays_in_f16_and_is_not_counted(
    sources, tmp_path
):
    source = sources("llama")
    _, made = stored(source, tmp_path, type="q4_0")
    down = [name for name in source.names if name.endswith("down_proj")]
    assert set(made.quantized) == set(source.names) - set(down)
    held = tensors(tmp_path)
    assert held["blk.0.ffn_down.weight"].tensor_type == GGMLQuantizationType.F16
    assert held["blk.0.ffn_up.weight"].tensor_type == GGMLQuantizationType.Q4_0


def test_a_module_that_is_left_out_stays_in_f16(sources, tmp_path):
    source = sources("llama")
    left = source.names[0]
    some = Source(source.model, source.processor, source.head, source.names[1:])
    params, made = stored(some, tmp_path, type="q8_0")
    assert left not in made.quantized
    assert left not in dict(ENTRY.facts["values"](params, tmp_path))
    assert tensors(tmp_path)["blk.0.attn_q.weight"].tensor_type.name == "F16"


@pytest.mark.parametrize(
    ("kind", "params", "embedding", "output"),
    [
        ("llama", {"type": "q4_1"}, "Q4_1", "Q8_0"),
        ("tied", {"type": "q4_1"}, "Q8_0", None),
        ("llama", {"type": "q8_0"}, "Q8_0", "Q8_0"),
        ("llama", {"type": "f16"}, "F16", "F16"),
        ("tied", {"type": "q4_0", "embeddings": "same"}, "Q4_0", None),
        ("llama", {"type": "q4_0", "embeddings": "f16"}, "F16", "F16"),
    ],
)
def test_embeddings(sources, tmp_path, kind, params, embedding, output):
    stored(sources(kind), tmp_path, **params)
    held = tensors(tmp_path)
    assert held["token_embd.weight"].tensor_type.name == embedding
    found = held.get("output.weight")
    assert (found and found.tensor_type.name) == output


def test_rows_of_a_head_are_interleaved_and_put_back():
    rows = torch.arange(2 * 8 * 3).reshape(16, 3).numpy()
    made = permute(rows, 2)
    for head in range(2):
        for half in range(2):
            for j in range(4):
                row = made[head * 8 + 2 * j + half]
                assert (row == rows[head * 8 + half * 4 + j]).all()
    assert (unpermute(made, 2) == rows).all()


def test_biases_of_q_and_k_are_interleaved_as_their_rows():
    config = AutoConfig.for_model(
        "llama", hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        attention_bias=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    turned = {t.name: t.heads for t in layout(model, [], "f16", "auto") if t.heads}
    assert turned == {
        f"blk.0.attn_{which}.{part}": heads
        for which, heads in (("q", 4), ("k", 2))
        for part in ("weight", "bias")
    }


def test_llama3_frequencies_are_those_of_transformers():
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = AutoConfig.for_model(
        "llama", hidden_size=512, num_attention_heads=4, rope_parameters=rope
    )
    expected, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](
        config, "cpu"
    )
    plain = 500000.0 ** -(torch.arange(0, 128, 2) / 128)
    torch.testing.assert_close(plain / rope_factors(config), expected)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "phi"])
def test_another_architecture_is_refused_and_the_known_are_named(sources, kind):
    source = sources(kind)
    with pytest.raises(QuantizationError, match="llama, mistral, qwen2, qwen3"):
        ENTRY.facts["predict"](ENTRY.schema(), source.model, source.names)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_act": "gelu"}, "silu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "yarn"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(sources, change, said):
    config = deepcopy(sources("llama").model.config)
    model = AutoModelForCausalLM.from_config(config)
    for name, given in change.items():
        setattr(model.config, name, given)
    with pytest.raises(QuantizationError, match=said):
        layout(model, [], "f16", "auto")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e5])
def test_a_weight_that_no_half_holds_is_refused(sources, bad):
    tensor = layout(sources("llama").model, [], "f16", "auto")[1]
    weight = torch.zeros(tensor.shape)
    weight[3, 4] = bad
    with pytest.raises(QuantizationError, match="65,504"):
        encoded(tensor, weight)


@pytest.mark.parametrize("part", [0.0, 0.0005, 0.1, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_one_clear_error(sources, tmp_path, part):
    params, _ = stored(sources("llama"), tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(ExportError, match="no whole GGUF file") as caught:
        list(ENTRY.facts["values"](params, tmp_path))
    assert str(tmp_path / FILE) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ExportError, match="no such file"):
        list(ENTRY.facts["values"](ENTRY.schema(), tmp_path))


class Noted:
    """A writer that keeps what it is told."""

    def __init__(self):
        self.said = {}

    def __getattr__(self, name):
        return lambda *given: self.said.__setitem__(name, given[0])


def said_of(tokenizer, rows=None):
    writer = Noted()
    add_vocabulary(writer, tokenizer, rows or len(tokenizer))
    return writer.said


def wrapped(made, **special):
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **special)


def bytes_tokenizer(*cuts):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    vocabulary["ab"] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    made.decoder = decoders.ByteLevel()
    return wrapped(made)


def test_the_cut_of_a_byte_level_tokenizer_has_llama_cpps_name():
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    mapped = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    qwen2 = transformers.models.qwen2.tokenization_qwen2.PRETOKENIZE_REGEX
    split = pre_tokenizers.Split(Regex(qwen2), "isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    assert said_of(bytes_tokenizer(whole))["add_tokenizer_pre"] == "gpt-2"
    assert said_of(bytes_tokenizer(digits, whole))["add_tokenizer_pre"] == "smollm"
    assert said_of(bytes_tokenizer(split, mapped))["add_tokenizer_pre"] == "qwen2"
    with pytest.raises(QuantizationError, match="Whitespace"):
        said_of(bytes_tokenizer(pre_tokenizers.Whitespace(), mapped))


def test_a_vocabulary_in_bytes(sources):
    processor = sources("llama").processor
    said = said_of(processor, 302)
    assert said["add_tokenizer_model"] == "gpt2"
    assert said["add_token_list"][:2] == ["<s>", "</s>"]
    assert said["add_token_list"][-2:] == ["[PAD300]", "[PAD301]"]
    assert said["add_token_types"][:3] == [3, 3, 1]  # control, control, normal
    assert said["add_token_types"][-1] == 5  # unused
    assert said["add_bos_token_id"] == processor.bos_token_id
    assert said["add_eos_token_id"] == processor.eos_token_id
    assert said["add_add_bos_token"] is True  # this one opens with <s>
    assert said["add_add_eos_token"] is False
    assert said["add_chat_template"] == processor.chat_template
    merges = said["add_token_merges"]
    assert all(len(merge.split(" ")) == 2 for merge in merges)


def test_a_vocabulary_in_pieces_with_bytes_to_fall_back_on():
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += ["▁a", "ab", "▁", "a", "b"]
    made = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[("▁", "a"), ("a", "b")],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    said = said_of(wrapped(made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"))
    assert said["add_tokenizer_model"] == "llama"
    kinds = said["add_token_types"]
    assert kinds[:4] == [2, 3, 3, 6]  # unknown, control, control, byte
    assert said["add_add_space_prefix"] is True
    scores = dict(zip(tokens, said["add_token_scores"], strict=True))
    assert scores["▁a"] > scores["ab"] > scores["a"]
    assert "add_token_merges" not in said


def test_a_tokenizer_that_llama_cpp_has_not_is_refused():
    with pytest.raises(QuantizationError, match="Unigram"):
        said_of(wrapped(Tokenizer(models.Unigram([("a", -1.0)]))))
