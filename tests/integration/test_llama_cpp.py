"""The engine llama-cpp against transformers, on the same weights and the same ids."""

import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    TextIteratorStreamer,
)

from loralab import registry
from loralab.errors import ModelError
from loralab.models.embedded import embedded_folder
from loralab.models.forward import output_only_at
from loralab.models.numerics import choose_numerics
from loralab.models.quiet import quiet_libraries
from loralab.quantization.storage import Source
from tests.tiny import SENTENCES, tiny

needs_it = pytest.mark.skipif(
    find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: pip install 'loralab[llama-cpp]'",
)
FILE = "model.gguf"


def opened(folder):
    numerics = choose_numerics("cpu", "fp32")
    return registry.get("engine", "llama-cpp").target(folder, {}, numerics)


def linear(model):
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]


def load(folder, **given):
    with quiet_libraries():
        found = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, **given
        )
    return found.eval()


def written(model, processor, folder, **params):
    entry = registry.get("storage format", "gguf")
    source = Source(model, processor, "causal-lm", linear(model))
    entry.target(entry.schema(**params), source, folder, lambda *_: None)
    return folder


class Pair:
    """A tiny model in both engines, from one file, and its tokenizer."""

    def __init__(self, folder, kind):
        plain = tiny(kind, folder / "plain")
        self.processor = AutoTokenizer.from_pretrained(plain)
        made = folder / "gguf"
        made.mkdir()
        self.folder = written(load(plain), self.processor, made, type="f16")
        self.torch = load(made, gguf_file=FILE)
        self.llama = opened(made)

    def ids(self, *texts):
        return [self.processor(text)["input_ids"] for text in texts]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = Pair(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


def close(found, expected):
    """Their sums are in other orders, and the cache of llama.cpp is in f16."""
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0.01)


def test_without_the_package_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    from loralab.inference.engines import _llama_cpp

    _llama_cpp.library.cache_clear()
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ModelError, match=r"pip install 'loralab\[llama-cpp\]'"):
        opened(tmp_path)


@needs_it
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_logits_are_those_of_transformers(pairs, kind):
    pair = pairs(kind)
    ids = torch.randint(5, 250, (2, 40))
    with torch.no_grad():
        close(pair.llama(ids).logits, pair.torch(ids).logits)


@needs_it
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(pairs, side):
    pair = pairs("llama")
    texts = pair.ids(*SENTENCES[:3], "Short.")
    width = max(map(len, texts)) + 2
    ids, mask = torch.zeros(4, width, dtype=torch.long), torch.zeros(4, width)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(-len(text), None)
        ids[row, place], mask[row, place] = torch.tensor(text), 1
    found = pair.llama(ids, attention_mask=mask).logits
    for row, text in enumerate(texts):
        alone = pair.llama(torch.tensor([text])).logits[0]
        close(found[row][mask[row].bool()], alone)


@needs_it
def test_packed_texts_do_not_see_each_other(pairs):
    pair = pairs("llama")
    first, second = pair.ids(SENTENCES[0], SENTENCES[70])
    places = [*range(len(first)), *range(len(second))]
    found = pair.llama(
        torch.tensor([first + second]), position_ids=torch.tensor([places])
    ).logits[0]
    close(found[: len(first)], pair.llama(torch.tensor([first])).logits[0])
    close(found[len(first) :], pair.llama(torch.tensor([second])).logits[0])


@needs_it
def test_the_output_layer_sees_only_the_places_that_are_kept(pairs):
    pair = pairs("llama")
    ids = torch.randint(5, 250, (3, 20))
    whole = pair.llama(ids).logits
    places = torch.tensor([0, 7, 19, 20, 45])
    with output_only_at(pair.llama, places, 20):
        kept = pair.llama(ids, use_cache=False).logits
    assert kept.shape == (1, 5, whole.shape[-1])
    close(kept[0], whole.flatten(0, 1)[places])


@needs_it
def test_a_text_longer_than_a_batch_of_llama_cpp(pairs):
    from loralab.inference.engines._llama_cpp import BATCH

    pair = pairs("llama")
    ids = torch.randint(5, 250, (1, BATCH))
    with pytest.raises(ModelError, match="512 positions"):
        pair.llama(torch.randint(5, 250, (1, BATCH + 300)))
    close(pair.llama(ids).logits, pair.torch(ids).logits.detach())


@needs_it
def test_greedy_answers_are_those_of_transformers_alone_and_together(pairs):
    pair = pairs("llama")
    prompts = pair.ids(*SENTENCES[::40], "A")
    steps = []
    together = pair.llama.greedy(prompts, 12, lambda: steps.append(1), stop=False)
    assert len(steps) == 12
    for prompt, answer in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        made = pair.torch.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12,
            min_new_tokens=12, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        assert answer == pair.llama.greedy([prompt], 12, None, stop=False)[0]
        assert answer == made[0, len(prompt) :].tolist() or _a_tie(pair, prompt, answer)


def _a_tie(pair, prompt, answer):
    """Whether transformers finds the first token that differs as likely."""
    with torch.no_grad():
        logits = pair.torch(torch.tensor([prompt + answer])).logits[0]
    near = logits[len(prompt) - 1 : -1]
    chosen = near.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return bool((near.max(1).values - chosen <= 0.03).all())


@needs_it
def test_an_answer_ends_at_the_end_token(pairs):
    pair = pairs("llama")
    (prompt,) = pair.ids("The old cat sees")
    free = pair.llama.greedy([prompt], 10, None, stop=False)[0]
    pair.llama.config.eos_token_id, kept = free[3], pair.llama.config.eos_token_id
    try:
        ended = pair.llama.greedy([prompt], 10, None, stop=True)[0]
    finally:
        pair.llama.config.eos_token_id = kept
    assert ended == free[: free.index(free[3]) + 1]


@needs_it
def test_generate_returns_what_transformers_does(pairs):
    pair = pairs("llama")
    texts = pair.ids("The old cat", "My sister likes good bread at")
    width = max(map(len, texts))
    ids = torch.tensor([[0] * (width - len(t)) + t for t in texts])
    mask = torch.tensor([[0] * (width - len(t)) + [1] * len(t) for t in texts])
    free = pair.llama.greedy(texts, 8, None, stop=False)
    end = free[0][2]  # the first answer ends early and is padded
    made = pair.llama.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=True,
        pad_token_id=1, eos_token_id=end,
    )  # fmt: skip
    assert torch.equal(made[:, :width], ids)
    short = free[0][: free[0].index(end) + 1]
    assert made[0, width : width + len(short)].tolist() == short
    assert (made[0, width + len(short) :] == 1).all()


@needs_it
def test_sampling_follows_the_temperature_and_torchs_seed(pairs):
    pair = pairs("llama")
    ids = torch.tensor(pair.ids("The old cat sees"))

    def sampled(temperature):
        torch.manual_seed(1)
        made = pair.llama.generate(
            ids, max_new_tokens=6, do_sample=True, temperature=temperature,
            num_return_sequences=4, eos_token_id=[],
        )  # fmt: skip
        return made[:, ids.shape[1] :]

    assert torch.equal(sampled(1.0), sampled(1.0))
    assert len({tuple(row) for row in sampled(2.0).tolist()}) > 1
    cold = sampled(1e-4)
    assert cold.tolist() == [pair.llama.greedy(ids.tolist(), 6, stop=False)[0]] * 4


@needs_it
def test_a_streamer_is_told_of_each_token(pairs):
    pair = pairs("llama")
    ids = torch.tensor(pair.ids("The old cat"))
    streamer = TextIteratorStreamer(pair.processor, skip_prompt=True)
    made = pair.llama.generate(
        ids, max_new_tokens=5, eos_token_id=[], streamer=streamer
    )
    assert "".join(streamer) == pair.processor.decode(made[0, ids.shape[1] :])


@needs_it
def test_every_type_is_read_as_it_was_written(pairs, tmp_path):
    pair = pairs("llama")
    for kind in ("q8_0", "q4_0", "q4_1"):
        folder = tmp_path / kind
        folder.mkdir()
        written(pair.torch, pair.processor, folder, type=kind)
        ids = torch.randint(5, 250, (1, 30))
        with torch.no_grad():
            expected = load(folder, gguf_file=FILE)(ids).logits
        found = opened(folder)(ids).logits
        # it rounds the activations to 8 bits as well
        assert (found - expected).norm() <= 0.05 * expected.norm()


@needs_it
def test_a_truncated_file_is_one_clear_error(pairs, tmp_path):
    whole = (pairs("llama").folder / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot open the file"):
        opened(tmp_path)


@needs_it
def test_a_missing_configuration_is_named(pairs, tmp_path):
    (tmp_path / FILE).write_bytes((pairs("llama").folder / FILE).read_bytes())
    with pytest.raises(ModelError, match=r"config\.json: no configuration"):
        opened(tmp_path)


@needs_it
def test_a_gpu_is_refused(pairs):
    numerics = choose_numerics("cpu", "fp32")
    object.__setattr__(numerics, "device", "cuda")
    with pytest.raises(ModelError, match="runs on the CPU"):
        registry.get("engine", "llama-cpp").target(pairs("llama").folder, {}, numerics)


@needs_it
def test_it_says_what_ran(pairs):
    said = pairs("llama").llama.describe()
    assert said["engine"] == "llama-cpp"
    assert said["threads"] == torch.get_num_threads()
    assert said["version"].count(".") == 2
    assert said["kernel"]


def pieces():
    """A tokenizer of the kind of Llama 2: pieces of text, bytes to fall back on."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    own = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=own, show_progress=False
    )
    made.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def tokens_of(folder, text, special=False):
    from loralab.inference.engines._llama_cpp import Weights

    weights = Weights(folder / FILE)
    lib, room = weights.lib, 512
    found = (lib.llama_token * room)()
    vocabulary = lib.llama_model_get_vocab(weights.pointer)
    given = text.encode()
    count = lib.llama_tokenize(
        vocabulary, given, len(given), found, room, False, special
    )
    return list(found[:count])


@needs_it
@pytest.mark.parametrize("style", ["bytes", "pieces"])
def test_llama_cpp_cuts_a_text_as_transformers_does(pairs, tmp_path, style):
    pair = pairs("llama")
    processor, model = pair.processor, pair.torch
    if style == "pieces":
        processor = pieces()
        model = load(pair.folder, gguf_file=FILE)
        model.resize_token_embeddings(len(processor))
    written(model, processor, tmp_path, type="f16")
    for text in [*SENTENCES[::30], "Never buys 12 apples, 1984!", "naïve 猫"]:
        expected = processor(text, add_special_tokens=False)["input_ids"]
        assert tokens_of(tmp_path, text) == expected


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = embedded_folder("smollm2-135m-instruct")
    processor = AutoTokenizer.from_pretrained(folder)
    return load(folder), processor, tmp_path_factory.mktemp("smollm2")


@needs_it
@pytest.mark.slow
def test_smollm2_in_f16_answers_as_in_transformers(smollm2):
    model, processor, folder = smollm2
    written(model, processor, folder, type="f16")
    engine = opened(folder)
    for text in ("What is the capital of France?", "Write a line about the sea."):
        chat = [{"role": "user", "content": text}]
        prompt = processor.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        ids = processor(prompt, return_tensors="pt")["input_ids"]
        assert tokens_of(folder, prompt, special=True) == ids[0].tolist()
        with torch.no_grad():
            expected = model(ids).logits
            made = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24,
                do_sample=False,
            )  # fmt: skip
        found = engine(ids).logits
        assert (found - expected).norm() <= 0.005 * expected.norm()
        answer = engine.greedy(ids.tolist(), 24, None, stop=True)[0]
        assert answer == made[0, ids.shape[1] :].tolist()
