"""Ranks, inits and LoRA+ in real trainings: what is configured is what is saved."""

import json

import pytest
from safetensors.torch import load_file

from loralab import compose, train
from loralab.errors import AdapterError, ConfigError, RunError
from loralab.inference.load import load_adapter
from loralab.runs import Run
from loralab.training.allotted import ranks_of_experiment
from loralab.training.prepare import prepare
from loralab.training.trainer import PEFTTrainer
from tests.cli import loralab
from tests.killing import Killed, killed, killed_and_resumed
from tests.tiny import tiny

SMALL = [
    "data.max_rows={train: 64, validation: 16, test: 16}",
    "model.dtype=fp32",
    "model.device=cpu",
    "training.callbacks=[]",
    "training.max_steps=8",
    "training.save_steps=2",
    "training.learning_rate=0.01",
    "training.warmup_ratio=0",
    "training.per_device_train_batch_size=16",
    "evaluation.base=false",
    "evaluation.resamples=200",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny("bert", tmp_path_factory.mktemp("model"))


def configured(base, *more):
    return compose("trec-6", [*SMALL, f"model.path={base}", *more])


def said(run):
    return json.loads((run.adapter / "adapter_config.json").read_text("utf-8"))


def stored_ranks(run):
    tensors = load_file(run.adapter / "adapter_model.safetensors")
    marker = ".lora_A.weight"
    return {
        name.removeprefix("base_model.model.").removesuffix(marker): len(tensor)
        for name, tensor in tensors.items()
        if name.endswith(marker)
    }


def test_a_strategy_that_looks_at_rows_is_recorded_and_saved(base, tmp_path):
    config = configured(base, "peft.params.ranks={name: gradient}")
    run = train(config, tmp_path)
    record = run.read()["calibration"]["ranks"]
    assert record["strategy"] == "gradient"
    assert 0 <= record["budget"] - record["met"] < 2 * 32
    assert stored_ranks(run) == record["ranks"]
    assert len(set(record["ranks"].values())) > 1
    assert said(run)["r"] == max(record["ranks"].values())
    assert run.read()["plan"]["scales"] == {"2.0": len(record["ranks"])}
    assert load_adapter(run).model.peft_config["default"].r == said(run)["r"]
    before = ranks_of_experiment(config)
    assert before["ranks"] == record["ranks"]


def test_a_plan_knows_ranks_that_need_no_rows_and_says_which_it_does_not(base):
    known = ranks_of_experiment(configured(base, "peft.params.ranks={name: mlp-heavy}"))
    assert known["known"]
    assert known["met"] <= known["budget"]
    asked = configured(base, "peft.params.ranks={name: gradient}")
    assert not prepare(asked, weights=False).attached.record["ranks"]["known"]


def test_budget_report_of_a_run(base, tmp_path):
    schedule = "peft.params.schedule=[{at: 0.25, rank: 12}, {at: 0.5, rank: 4}]"
    run = train(configured(base, schedule), tmp_path)
    told = [e for e in run.events() if e["event"] == "ranks"]
    assert [e["step"] for e in told] == [2, 4]
    modules = len(told[0]["ranks"])
    assert [e["total_rank"] for e in told] == [12 * modules, 4 * modules]
    assert all(0 <= x <= 1 for x in told[1]["truncation_errors"].values())
    spent, plan = run.read()["training"], run.read()["plan"]
    assert spent["trainable"] < plan["trainable"] < spent["most_trainable"]
    assert sum(stored_ranks(run).values()) == 4 * modules
    assert spent["flops"] > 0
    assert spent["tokens"] > 0
    assert spent["seconds"] > 0


def test_flops_are_those_of_the_products(base, tmp_path):
    run = train(configured(base, "training.max_steps=2"), tmp_path)
    spent, plan = run.read()["training"], run.read()["plan"]
    facts = run.read()["base"]
    linear = 2 * (4 * 32 * 32 + 2 * 32 * 48) * facts["layers"]  # forward, a position
    # forward and the gradient of inputs: twice; the adapter's share and attention more
    assert 1.5 < spent["flops"] / (linear * spent["positions"]) < 6
    assert plan["trainable"] == spent["trainable"]


@pytest.mark.parametrize(
    "change",
    [
        "peft.params.schedule=[{at: 0.25, rank: 12}, {at: 0.75, rank: 4}]",
        pytest.param("peft.params.init=lora-ga", marks=pytest.mark.slow),
        pytest.param("peft=p-tuning", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_ends_with_the_same_bytes(base, tmp_path, monkeypatch, change):
    config = configured(base, change)
    whole = train(config, tmp_path / "whole")
    run = killed_and_resumed(config, tmp_path / "killed", monkeypatch, (1, 5))
    name = "adapter_model.safetensors"
    assert (run.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
    metrics = [r.evaluations()["test"]["metrics"] for r in (run, whole)]
    assert metrics[0] == metrics[1]


LARGEST = 10**15


@pytest.fixture
def measured_last(base, tmp_path, monkeypatch):
    """Return what is given a run that was killed as it evaluated: it is continued."""

    def die(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("loralab.training.train._evaluate", die)
        patch.setattr("loralab.training.watch.peak_memory_bytes", lambda: LARGEST)
        with pytest.raises(Killed):
            train(configured(base), tmp_path / "killed")
    return tmp_path / "killed"


def test_flops_and_peak_are_those_of_all_sessions(base, measured_last, tmp_path):
    run = train(configured(base), measured_last, resume=True)
    whole = train(configured(base), tmp_path / "whole")
    assert run.read()["training"]["flops"] == whole.read()["training"]["flops"] > 0
    assert run.read()["peak_memory_bytes"] == LARGEST
    assert whole.read()["peak_memory_bytes"] < LARGEST
    name = "adapter_model.safetensors"
    assert (run.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()


def test_a_checkpoint_from_before_flops_and_peak_were_kept_is_continued(
    base, measured_last
):
    for file in measured_last.rglob("state.json"):
        state = json.loads(file.read_text("utf-8"))
        parts = dict(state["parts"]["__items__"])
        del parts["flops"]
        (report,) = parts["report"].values()
        report[:] = [pair for pair in report if pair[0] != "peak_memory_bytes"]
        state["parts"]["__items__"] = list(parts.items())
        file.write_text(json.dumps(state), "utf-8")
    run = train(configured(base), measured_last, resume=True)
    assert run.read()["training"]["flops"] is None
    assert 0 < run.read()["peak_memory_bytes"] < LARGEST


def test_an_init_that_comes_out_otherwise_is_not_resumed(base, tmp_path, monkeypatch):
    config = configured(base, "peft.params.init=lora-ga")
    killed(config, tmp_path, monkeypatch, 3)
    run = Run(tmp_path / config.run_id)
    record = run.read()["calibration"]
    record["init"]["hash_after"] = "0" * 16
    run.update(calibration=record)
    with pytest.raises(RunError, match="came out otherwise"):
        train(config, tmp_path, resume=True)


def test_lora_plus_gives_b_a_rate_of_its_own(base, tmp_path, monkeypatch):
    seen = {}
    made = PEFTTrainer.create_optimizer

    def spy(self, *args, **kwargs):
        optimizer = made(self, *args, **kwargs)
        names = {id(p): n for n, p in self.model.named_parameters()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                seen[names[id(parameter)]] = group["lr"]
        return optimizer

    monkeypatch.setattr(PEFTTrainer, "create_optimizer", spy)
    train(configured(base, "peft=lora-plus", "training.max_steps=2"), tmp_path)
    rates = {".lora_B." in name: rate for name, rate in seen.items()}
    assert rates == {True: pytest.approx(0.16), False: pytest.approx(0.01)}
    trained = {n for n in seen if ".lora_" in n or "classifier" in n}
    assert trained == set(seen)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("peft=prefix-tuning", "read no past keys"),
        ("peft.params.schedule=[{at: 0.5, rank: 4, ranks: {name: eva}}]", "spectrum"),
        ("peft.params.ranks={name: uniform, budget: 10}", "budget is 10"),
        ("peft.params.ranks={name: table, params: {ranks: {nothing: 4}}}", "nothing"),
        ("peft.params.ranks={name: gradiant}", "gradient"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_training(base, tmp_path, change, words):
    outcome = loralab(
        "train", "trec-6", *SMALL, f"model.path={base}", change,
        "--runs-dir", str(tmp_path / "runs"),
    )  # fmt: skip
    assert outcome.code == 2
    assert words in outcome.err
    assert not (tmp_path / "runs").exists()


def test_a_schedule_cannot_be_stopped_early(base):
    schedule = "peft.params.schedule=[{at: 0.5, rank: 4}]"
    with pytest.raises(ConfigError, match="early stopping"):
        prepare(configured(base, schedule, "training.early_stopping={}"))


def test_a_change_of_ranks_that_cannot_be_is_told_before_the_first_step(base, tmp_path):
    ranks = "{name: mlp-heavy, minimum: 9}"
    schedule = f"peft.params.schedule=[{{at: 0.5, rank: 4, ranks: {ranks}}}]"
    config = configured(base, schedule)
    with pytest.raises(AdapterError, match="least ranks"):
        train(config, tmp_path)
    assert not any(e["event"] == "log" for e in Run(tmp_path / config.run_id).events())


def test_a_prompt_that_makes_rows_too_long_is_refused(base):
    with pytest.raises(ConfigError, match="positions of the base"):
        prepare(configured(base, "peft=prompt-tuning", "peft.params.tokens=500"))


def test_ranks_verbs(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change = "peft.params.ranks={name: linear-growth}"
    told = loralab("ranks", "trec-6", *SMALL, f"model.path={base}", change)
    assert told.code == 0, told.err
    assert "alpha / rank is 2" in told.out
    run = train(configured(base, change), tmp_path / "runs")
    told = loralab("ranks", "--from", run.id, "--out", "small", "--figures", "drawn")
    assert told.code == 0, told.err
    assert "cross_entropy" in told.out
    assert (tmp_path / "small/adapter_model.safetensors").is_file()
    assert (tmp_path / "drawn/spectra.svg").is_file()
    assert loralab("ranks").code == 2
    assert loralab("methods", "lora", "--json").code == 0
