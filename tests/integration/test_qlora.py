"""Training on a quantized base: it learns, the base stays, and nothing is silent."""

import json

import pytest
import torch

from loralab import compose, train
from loralab.adapters.attach import attach
from loralab.config import ModelConfig, PEFTConfig
from loralab.errors import AdapterError, LoralabError
from loralab.evaluation.multitask import MultiTaskEvaluator
from loralab.inference.load import load_adapter, merged_of
from loralab.models.base import load_base
from loralab.models.empty import empty_base
from loralab.publishing.card import model_card
from loralab.training.plan import plan
from loralab.training.prepare import prepare
from tests.cli import loralab
from tests.tiny import tiny

SMALL = [
    "data.max_rows={train: 24, validation: 8, test: 8}", "model.dtype=fp32",
    "training.per_device_train_batch_size=2", "training.max_steps=10",
    "training.eval_steps=5", "training.learning_rate=2e-2", "evaluation.resamples=200",
]  # fmt: skip
EXACT = "model.storage={name: nf4-dq, params: {compute: fp32}}"
STORED = {
    "nf4": "model.storage={name: nf4, params: {compute: fp32}}",
    "nf4-dq": EXACT,
    "int8": "model.storage=int8",
    "affine-int4": "model.storage=affine_int4",
    "affine-int8": "model.storage={name: affine-int8, params: {scales: fp16}}",
}
IDS = torch.arange(5, 29).view(2, 12)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return f"model.path={tiny('llama', folder, **sizes)}"


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return train(compose("chatterbot", [*SMALL, llama, EXACT]), runs)


def held(model):
    """Return every tensor of the base, quantized ones with what belongs to them."""
    found = {}
    for name, tensor in model.state_dict().items():
        if "lora_" not in name:
            found[name] = tensor.clone()
    return found


def events(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").open()]


def test_it_learns_and_says_what_on(run):
    losses = [e["eval_loss"] for e in events(run) if e["event"] == "validation"]
    assert losses[-1] < losses[0] - 0.1
    stored = {"name": "nf4-dq", "params": {"rest": "bf16", "compute": "fp32"}}
    assert run.read()["base"]["storage"] == stored
    note = json.loads((run.adapter / "loralab.json").read_text())
    assert note["base"]["storage"] == stored
    assert run.read()["plan"]["storage"].startswith("nf4-dq: 14 linear modules")


@pytest.mark.parametrize("name", STORED)
def test_training_moves_the_adapter_and_not_the_base(name, llama):
    """Evaluation between steps included: bitsandbytes then packs a layer for good."""
    config = compose("chatterbot", [*SMALL, llama, STORED[name]]).model
    base = load_base(config, "causal-lm")
    before = held(base.model)
    torch.manual_seed(0)
    model = attach(base, PEFTConfig()).model
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-2)
    losses = []
    for _ in range(4):
        loss = model.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        assert all(p.grad is not None for p in trained)
        first = next(p for n, p in model.named_parameters() if "layers.0.self" in n
                     and "lora_B" in n)  # fmt: skip
        assert first.grad.abs().sum() > 0
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        with torch.no_grad():
            model.eval()(input_ids=IDS)
    assert losses[-1] < losses[0] - 0.1
    after = {n.replace(".base_layer", "").removeprefix("base_model.model."): t
             for n, t in held(model).items()}  # fmt: skip
    assert set(after) == set(before)
    assert all(torch.equal(after[n], t) for n, t in before.items())


def test_bitsandbytes_would_cut_the_gradient_after_an_evaluation(llama):
    """The mistake that `settle` guards against: when it is mended, the guard can go."""
    base = load_base(compose("chatterbot", [*SMALL, llama, EXACT]).model, "causal-lm")
    layer = base.model.model.layers[0].mlp.up_proj
    assert not layer.support_avx512bf16_for_cpu
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16")
    layer.support_avx512bf16_for_cpu = True
    with torch.no_grad():
        layer.eval()(torch.randn(1, 64))
    x = torch.randn(1, 64, requires_grad=True)
    with pytest.warns(UserWarning, match="autograd kernel was not registered"):
        layer.train()(x).sum().backward()
    assert x.grad is None


def test_the_adapter_comes_back_on_a_fresh_base(run):
    first, second = load_adapter(run), load_adapter(run)
    with torch.no_grad():
        one = first.model(input_ids=IDS).logits
        assert torch.equal(one, second.model(input_ids=IDS).logits)
        with first.model.disable_adapter():
            assert not torch.allclose(one, first.model(input_ids=IDS).logits, atol=0.1)
    assert first.base.storage.name == "nf4-dq"


def test_an_adapter_stays_with_the_weights_it_was_trained_on(run):
    other = load_adapter(run, storage=None)  # asked for
    assert other.base.storage is None
    note = json.loads((run.adapter / "loralab.json").read_text())
    note["base"]["storage"] = None
    broken = run.adapter / "loralab.json"
    before = broken.read_text()
    broken.write_text(json.dumps(note))
    try:
        with pytest.raises(AdapterError, match="stored as float, and this one is nf4"):
            load_adapter(run)
    finally:
        broken.write_text(before)


@pytest.mark.parametrize(
    ("method", "storage", "reason"),
    [
        ("qa-lora", "nf4-dq", "it quantizes the float base itself"),
        ("qa-lora", "affine-int4", "it quantizes the float base itself"),
        ("full", "int8", "quantized"),
        ("bitfit", "nf4", "bitsandbytes casts the biases"),
        ("vera", "affine-int4", "no layer of this method for affine codes"),
    ],
)
def test_a_method_that_cannot_is_refused_before_anything_loads(
    method, storage, reason, llama
):
    over = [f"peft={method}", f"model.storage={storage}"]
    found = compose("chatterbot", [*SMALL, llama, *over])
    for begin in (plan, prepare):
        with pytest.raises(AdapterError, match=reason) as error:
            begin(found)
        assert "model.storage" in str(error.value)


def test_the_command_line_refuses_with_2(llama):
    over = ["peft=qa-lora", "model.storage=nf4"]
    done = loralab("plan", "chatterbot", *SMALL, llama, *over)
    assert done.code == 2
    assert "it quantizes the float base itself" in done.err
    done = loralab("plan", "chatterbot", *SMALL, llama, "model.storage=nf5")
    assert done.code == 2
    assert "no storage format 'nf5'" in done.err


def test_lora_is_not_merged_into_a_copy_of_affine_weights(llama):
    config = compose("chatterbot", [*SMALL, llama, STORED["affine-int4"]]).model
    model = attach(load_base(config, "causal-lm"), PEFTConfig()).model
    with pytest.raises(AdapterError, match="cannot be merged into affine codes"):
        model.merge_and_unload()


@pytest.mark.parametrize("name", STORED)
def test_a_plan_knows_what_the_base_takes(name, llama):
    config = compose("chatterbot", [*SMALL, llama, STORED[name]])
    empty = empty_base(config.model, "causal-lm")
    loaded = load_base(config.model, "causal-lm")
    assert empty.facts == loaded.facts
    assert {type(m).__name__ for m in empty.model.modules()} == {
        type(m).__name__ for m in loaded.model.modules()
    }
    totals = [attach(base, PEFTConfig()).total for base in (empty, loaded)]
    assert totals[0] == totals[1]


def logits_of(loaded):
    with torch.no_grad():
        return loaded.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize("own", ["peft=qa-lora", "peft.params.init=loftq", EXACT])
def test_a_merge_stays_with_the_base_that_training_saw(own, llama, tmp_path):
    words = [*SMALL, llama, "training.max_steps=2", own]
    runs, out = tmp_path / "runs", tmp_path / "merged"
    run = train(compose("chatterbot", words), runs)
    float_run = train(compose("chatterbot", [*SMALL, llama]), runs)
    merge = ["merge", run.path, "--method", "cat", "--out"]
    assert loralab(*merge, out).code == 0
    torch.testing.assert_close(
        logits_of(merged_of(out, dtype="fp32")), logits_of(load_adapter(run)),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    mixed = loralab(*merge, tmp_path / "mixed", float_run.path)
    assert mixed.code == 2 and "of different bases" in mixed.err
    folder = llama.removeprefix("model.path=")
    baked = loralab(*merge, tmp_path / "baked", "--bake", folder, "--json")
    if own == EXACT:  # usual practice, and said
        (told,) = json.loads(baked.out)["baked"]["warnings"]
        assert "stored as nf4-dq" in told
    else:
        assert baked.code == 2 and "rewritten by" in baked.err, baked.err
        assert "route qa-lora" in baked.err
        again = ["merge", out, "--method", "cat", "--out", tmp_path / "twice"]
        assert loralab(*again, "--bake", folder).code == 2
        with pytest.raises(AdapterError, match="rewritten"):
            MultiTaskEvaluator([run])
    usage = model_card(run).partition("## Use")[2]
    assert ("loralab infer" in usage) == (own != EXACT)


@pytest.mark.slow
def test_a_plan_of_a_quantized_base_needs_less():
    wide = [*SMALL, "model.path=embedded:smollm2-135m-instruct"]
    config = compose("chatterbot", wide)
    stored = compose("chatterbot", [*wide, "model.storage=nf4-dq"])
    weights = []
    for one in (config, stored):
        base = empty_base(one.model, "causal-lm").model
        tensors = [*base.parameters(), *base.buffers()]
        weights.append(sum({id(t): t.nbytes for t in tensors}.values()))
    assert weights[0] == pytest.approx(4 * 134_515_008, rel=1e-4)
    in_blocks = 106_168_320  # parameters of the linear modules
    saved = weights[0] - weights[1]
    assert saved == pytest.approx(in_blocks * (4 - 4.127 / 8), rel=0.01)


def test_the_hash_of_a_float_run_is_what_it_was():
    before = compose("trec-6", [])
    assert before.model.storage is None
    assert compose("trec-6", ["model.storage=null"]).hash == before.hash
    assert compose("trec-6", ["model.storage=nf4"]).hash != before.hash
    content = before.model_dump(mode="json", exclude={"name": True})
    assert "storage" in content["model"]
    assert before.hash == "2c3c1e6270"  # as it was before storage was a key


def test_a_named_storage_is_the_same_as_its_defaults():
    bare = ModelConfig(path="./x", storage="nf4-dq").storage
    full = {"name": "nf4-dq", "params": {"rest": "bf16", "compute": "bf16"}}
    assert ModelConfig(path="./x", storage=full).storage == bare
    with pytest.raises((ValueError, LoralabError), match="block"):
        ModelConfig(path="./x", storage={"name": "nf4", "params": {"block": 32}})
