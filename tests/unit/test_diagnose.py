import copy
import math
import shutil

import pytest

from loralab.evaluation.diagnose import SEVERITIES, Finding, diagnose, findings_of
from loralab.runs import Run


def interval(value, half):
    return {"value": value, "low": value - half, "high": value + half}


def class_of(label, support, precision, recall):
    return {
        "label": label,
        "support": support,
        "precision": precision,
        "recall": recall,
    }


class Files:
    """What stands in the files of a run that was trained well."""

    def __init__(self):
        losses = [1.8, 1.7, 1.3, 0.9, 0.7, 0.5, 0.42, 0.4, 0.39, 0.4, 0.38, 0.37]
        self.config = {
            "task": {"name": "text-classification", "params": {"max_length": 64}},
            "data": {
                "max_rows": {"train": None, "validation": None, "test": None},
                "duplicates": "drop",
            },
            "peft": {"name": "lora", "params": {"rank": 8, "alpha": 16.0}},
            "training": {
                "num_train_epochs": 3.0,
                "max_steps": -1,
                "per_device_train_batch_size": 32,
                "gradient_accumulation_steps": 1,
                "learning_rate": 1e-3,
                "warmup_ratio": 0.06,
                "lr_scheduler_type": "linear",
                "max_grad_norm": 1.0,
                "optim": "adamw_torch",
                "early_stopping": None,
            },
        }
        self.record = {
            "status": "complete",
            "error": None,
            "base": {"layers": 6},
            "data": {
                "report": {
                    "read": 4000,
                    "malformed": 0,
                    "duplicates": 40,
                    "leaks": 3,
                    "conflicts": 2,
                }
            },
            "plan": {
                "steps": 120,
                "trainable": 340_230,
                "total": 23_055_756,
                "targets": {"query": 6, "key": 6, "output\\.dense": 12},
                "scales": {"2.0": 24},
                "supervised_share": 0.07,
                "notes": {"at_max_length": 20},
                "dtype": "fp32",
                "device": "cpu",
                "rows": {"train": 1280, "validation": 300, "test": 2000},
            },
            "training": {"steps": 120},
        }
        self.logs = [
            {
                "event": "log",
                "step": 10 * (i + 1),
                "loss": loss,
                "grad_norm": 0.5 + 0.1 * (i % 3),
                "learning_rate": 1e-3 * (1 - i / 12),
            }
            for i, loss in enumerate(losses)
        ]
        self.validations = [
            {"event": "validation", "step": s, "eval_loss": x}
            for s, x in ((40, 0.8), (80, 0.5), (120, 0.48))
        ]
        self.result = {
            "split": "test",
            "measured_rows": 2000,
            "confidence": 0.95,
            "primary": "accuracy",
            "better": {"accuracy": "higher", "cross_entropy": "lower"},
            "metrics": {
                "accuracy": {
                    "base": interval(0.7, 0.02),
                    "adapter": interval(0.7, 0.02),
                    "difference": interval(0.0, 0.02),
                },
                "cross_entropy": {
                    "base": interval(1.9, 0.1),
                    "adapter": interval(1.85, 0.1),
                    "difference": interval(-0.05, 0.1),
                },
            },
            "majority": 0.5,
            "per_class": [
                class_of("a", 1000, 0.7, 0.7),
                class_of("b", 1000, 0.7, 0.7),
            ],
        }
        self.evaluations = {"test": self.result}

    @property
    def events(self):
        return [{"event": "plan"}, *self.logs, *self.validations]

    def findings(self):
        args = self.config, self.record, self.events, self.evaluations
        before = copy.deepcopy(args)
        found = findings_of(*args)
        assert args == before or any(map(math.isnan, (x["loss"] for x in self.logs)))
        return found

    def kinds(self):
        return [finding.kind for finding in self.findings()]

    def differs(self, metric, value, half):
        self.result["metrics"][metric]["difference"] = interval(value, half)

    def losses(self, *values):
        for log, value in zip(self.logs, values, strict=False):
            log["loss"] = value
        self.logs = self.logs[: len(values)]

    def norms(self, *values):
        for log, value in zip(self.logs, values, strict=True):
            log["grad_norm"] = value


def failed(error):
    def change(f):
        f.record |= {"status": "failed", "error": error}
        f.evaluations = {}

    return change


def status(name):
    def change(f):
        f.record |= {"status": name}
        f.evaluations = {}

    return change


def training(**values):
    return lambda f: f.config["training"].update(values)


def planned(**values):
    return lambda f: f.record["plan"].update(values)


def reported(**values):
    return lambda f: f.record["data"]["report"].update(values)


def no_evaluation(f):
    f.evaluations = {}


def only_validation(f):
    f.result["split"] = "validation"
    f.evaluations = {"validation": f.result}
    f.differs("accuracy", 0.2, 0.02)


def no_base(f):
    for arms in f.result["metrics"].values():
        del arms["base"], arms["difference"]


def flat(f):
    f.losses(*[1.8, 1.79, 1.81, 1.8, 1.79, 1.8, 1.8, 1.81, 1.79, 1.8, 1.8, 1.79])


def flat_at_a_tiny_rate(f):
    flat(f)
    training(learning_rate=1e-7)(f)
    for log in f.logs:
        log["learning_rate"] *= 1e-4


def flat_with_sgd(f):
    flat(f)
    training(optim="sgd")(f)


def unmoved_without_logs(f):
    f.logs = []
    training(learning_rate=1e-6)(f)
    f.differs("cross_entropy", -1e-5, 1e-5)


def nan_loss(f):
    f.losses(1.8, math.nan, math.nan)


def above_the_base(f):
    f.losses(10.6, 8.2)


def oscillates(f):
    f.losses(1.5, 0.4, 1.5, 0.4, 1.5, 0.3)


def rises(f):
    f.losses(1.0, 1.0, 1.05, 1.1, 1.2, 1.25)


def overfits(f):
    for validation, x in zip(f.validations, (0.5, 0.8, 0.9), strict=True):
        validation["eval_loss"] = x


def falls_to_the_end(f):
    f.losses(1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9, 0.8, 0.7)


def too_few_test_rows(f):
    f.result["measured_rows"] = 100
    f.differs("accuracy", 0.03, 0.11)


def says_one_class(f):
    f.result["per_class"] = [
        class_of("a", 1000, 0.5, 1.0),
        class_of("b", 1000, None, 0),
    ]


def below_the_majority(f):
    f.result["majority"] = 0.75


def base_is_at_the_top(f):
    f.result["metrics"]["accuracy"]["base"] = interval(0.97, 0.01)


def learns_a_little(f):
    f.differs("cross_entropy", -0.2, 0.05)


def few_steps(f):
    f.record["training"]["steps"] = 20


def few_rows(f):
    f.record["plan"]["rows"]["train"] = 150
    f.record["plan"]["notes"] = {}


def duplicates_kept(f):
    f.config["data"]["duplicates"] = "keep"


def writes_with_few_labels(f):
    f.config["task"]["name"] = "causal-lm"
    planned(supervised_share=0.01)(f)


def in_bf16_and_flat(f):
    flat(f)
    planned(dtype="bf16")(f)


def stopped_in_the_warm_up(f):
    training(warmup_ratio=0.5)(f)
    f.record["training"]["steps"] = 60


MISTAKES = [
    ("failed", failed("something broke\n  fix: mend it")),
    ("interrupted", status("interrupted")),
    ("running", status("running")),
    ("no_test_evaluation", no_evaluation),
    ("no_test_evaluation", only_validation),
    ("no_base", no_base),
    ("learning_rate_high", failed("the loss is nan at step 7")),
    ("learning_rate_high", nan_loss),
    ("learning_rate_high", above_the_base),
    ("learning_rate_high", oscillates),
    ("learning_rate_high", rises),
    ("learning_rate_odd", training(learning_rate=0.01)),
    ("gradient_spikes", lambda f: f.norms(*[0.5] * 6, 30.0, *[0.5] * 5)),
    ("learning_rate_low", flat_at_a_tiny_rate),
    ("learning_rate_low", flat_with_sgd),
    ("learning_rate_low", unmoved_without_logs),
    ("loss_not_falling", flat),
    ("overfit", overfits),
    ("still_falling", falls_to_the_end),
    ("few_test_rows", too_few_test_rows),
    ("interval_unsure", lambda f: f.result.update(measured_rows=12)),
    ("only_frequent_class", says_one_class),
    ("only_frequent_class", below_the_majority),
    ("ceiling", base_is_at_the_top),
    ("learns_too_little", learns_a_little),
    ("few_steps", few_steps),
    ("few_rows", few_rows),
    ("odd_scale", planned(scales={"16.0": 24})),
    ("odd_scale", planned(scales={"0.125": 24})),
    ("unequal_scale", planned(scales={"2.0": 12, "1.0": 12})),
    ("few_targets", planned(targets={"q_proj": 30, "v_proj": 30})),
    ("few_targets", planned(targets={"output\\.dense": 2})),
    ("small_share", planned(trainable=9_000)),
    ("rows_cut", planned(notes={"at_max_length": 400})),
    ("rows_cut", planned(notes={"longer_than_max_length_left_out": 400})),
    ("rows_cut", planned(notes={"longer_than_max_target_length_left_out": 400})),
    ("rows_cut", planned(notes={"sources_cut": 400})),
    ("little_supervision", writes_with_few_labels),
    ("leaks_kept", duplicates_kept),
    ("conflicts", reported(conflicts=900)),
    ("rows_dropped", reported(duplicates=3000)),
    ("always_clipped", lambda f: f.norms(*[3.0] * 12)),
    ("long_warm_up", training(warmup_ratio=0.6)),
    ("long_warm_up", stopped_in_the_warm_up),
    ("dtype", in_bf16_and_flat),
]


def test_a_sound_run_that_is_not_better_shows_no_usual_cause():
    assert Files().findings() == []


@pytest.mark.parametrize(("kind", "mistake"), MISTAKES)
def test_a_mistake_is_found_with_evidence_and_fix(kind, mistake):
    files = Files()
    mistake(files)
    found = {finding.kind: finding for finding in files.findings()}
    assert kind in found
    assert found[kind].evidence
    assert found[kind].fix


@pytest.mark.parametrize(("kind", "mistake"), MISTAKES)
def test_the_most_severe_stands_first(kind, mistake):
    files = Files()
    mistake(files)
    ranks = [SEVERITIES.index(finding.severity) for finding in files.findings()]
    assert ranks == sorted(ranks)


def test_each_check_has_a_test_that_makes_its_mistake():
    import inspect

    from loralab.evaluation import diagnose_setup, diagnose_training

    source = inspect.getsource(diagnose_setup) + inspect.getsource(diagnose_training)
    kinds = {kind for kind, _ in MISTAKES}
    assert all(f'"{kind}", "' in source for kind in kinds)
    assert source.count("yield Finding(") == len(kinds)


@pytest.mark.parametrize(
    ("kind", "mistake", "mended"),
    [
        ("overfit", overfits, training(early_stopping={"patience": 2})),
        ("always_clipped", lambda f: f.norms(*[3.0] * 12), training(max_grad_norm=0)),
        (
            "long_warm_up",
            training(warmup_ratio=0.6),
            training(lr_scheduler_type="constant"),
        ),
        (
            "little_supervision",
            writes_with_few_labels,
            lambda f: f.config["task"].update(name="text-classification"),
        ),
        ("dtype", in_bf16_and_flat, planned(dtype="fp32")),
        (
            "few_test_rows",
            too_few_test_rows,
            lambda f: f.differs("accuracy", 0.0, 0.0),
        ),
        (
            "ceiling",
            base_is_at_the_top,
            lambda f: f.result["better"].update(accuracy="lower"),
        ),
    ],
)
def test_a_check_is_silent_where_it_does_not_apply(kind, mistake, mended):
    files = Files()
    mistake(files)
    assert kind in files.kinds()
    mended(files)
    assert kind not in files.kinds()


def test_the_interval_of_a_share_is_not_doubted_for_few_rows():
    files = Files()
    files.result |= {"measured_rows": 12, "primary": "macro-f1"}
    files.result["better"]["macro-f1"] = "higher"
    files.result["metrics"]["macro-f1"] = files.result["metrics"]["accuracy"]
    files.result["shares"] = ["accuracy"]
    (found,) = (f for f in files.findings() if f.kind == "interval_unsure")
    assert "macro-f1 is drawn by bootstrap" in found.evidence
    files.result["primary"] = "accuracy"
    assert "interval_unsure" not in files.kinds()


def test_an_evaluation_says_which_metrics_are_shares(minilm_run):
    result = minilm_run.evaluations()["test"]
    assert result["shares"] == ["accuracy"]
    assert {"macro-f1", "cross_entropy"} <= set(result["metrics"])


def test_a_noisy_flat_loss_is_no_fall_and_no_rise():
    files = Files()
    files.losses(2.0, 1.6, 2.1, 1.7, 1.9, 1.6, 2.0, 1.7, 1.9, 1.8, 1.7, 1.9)
    assert "loss_not_falling" in files.kinds()
    assert "learning_rate_high" not in files.kinds()


def test_a_rate_too_high_is_not_called_too_low_as_well():
    files = Files()
    rises(files)
    kinds = files.kinds()
    assert "learning_rate_high" in kinds
    assert not {"learning_rate_low", "loss_not_falling"} & set(kinds)


def test_the_rows_that_would_be_enough_are_named():
    files = Files()
    too_few_test_rows(files)
    evidence = next(f.evidence for f in files.findings() if f.kind == "few_test_rows")
    # standard error 0.11 / 1.96 at 100 rows; it must be 0.03 / (1.96 + 0.8416)
    needed = math.ceil(100 * (0.11 / 1.959964 * 2.801585 / 0.03) ** 2)
    assert f"{needed:,} rows" in evidence


def test_a_failure_tells_the_fix_of_its_error():
    files = Files()
    failed("no gradient\n  why: frozen\n  fix: thaw it")(files)
    first = files.findings()[0]
    assert (first.severity, first.fix) == ("failure", "thaw it")
    training(optim="sgd")(files)
    failed("26 of 76 trained tensors have not moved after 3 steps")(files)
    assert "adamw_torch" in files.findings()[0].fix
    failed("OutOfMemoryError: CUDA out of memory. Tried …")(files)
    assert "gradient_checkpointing" in files.findings()[0].fix


@pytest.mark.parametrize(
    ("state", "kind", "fix"),
    [
        ("failed", "failed", "the same `loralab quantize` again"),
        ("interrupted", "interrupted", "the same `loralab quantize` again"),
        ("complete", "artefact", "loralab compare"),
    ],
)
def test_an_artefact_is_told_of_its_making_not_of_a_training(state, kind, fix):
    files = Files()
    del files.record["plan"]
    files.record |= {
        "kind": "artefact",
        "status": state,
        "error": "too large\n  why: x",
    }
    (found,) = files.findings()
    assert found.kind == kind
    assert fix in found.fix
    assert "train" not in found.evidence
    files.record["error"] += "\n  fix: choose rest=bf16"
    if state == "failed":
        (found,) = files.findings()
        assert (found.evidence, found.fix) == (
            "quantize failed: too large; x",
            "choose rest=bf16",
        )


def test_few_steps_are_told_with_the_processes_that_shared_them():
    files = Files()
    few_steps(files)
    (alone,) = (f for f in files.findings() if f.kind == "few_steps")
    files.config["training"]["parallel"] = {"strategy": "ddp", "processes": 4}
    (four,) = (f for f in files.findings() if f.kind == "few_steps")
    assert "processes" not in str(alone)
    assert "× 1 × 4 processes)" in str(four)


def test_an_adapter_that_is_better_is_told_only_what_could_be_gained():
    files = Files()
    files.differs("accuracy", 0.2, 0.02)
    few_steps(files)
    assert files.findings() == []
    overfits(files)
    assert files.kinds() == ["overfit"]


def test_an_adapter_that_beats_an_untrained_head_by_one_class_is_told_so():
    files = Files()
    files.differs("accuracy", 0.2, 0.02)
    says_one_class(files)
    assert files.kinds() == ["only_frequent_class"]


def test_a_run_killed_before_its_plan_can_be_diagnosed():
    files = Files()
    files.record = {"status": "interrupted"}
    files.logs, files.validations, files.evaluations = [], [], {}
    assert files.kinds() == ["interrupted"]


def test_a_real_run_of_six_steps(minilm_run):
    found = diagnose(minilm_run)
    result = minilm_run.evaluations()["test"]
    gap = result["metrics"][result["primary"]]["difference"]
    assert found.measured["difference"] == gap
    expected = (
        "better" if gap["low"] > 0 else "worse" if gap["high"] < 0 else "not shown"
    )
    assert found.verdict == expected
    if expected != "better":
        assert {"few_steps", "few_rows"} <= {f.kind for f in found.findings}
    assert all(isinstance(f, Finding) for f in found.findings)


def test_a_real_run_whose_process_is_gone_was_interrupted(minilm_run, tmp_path):
    shutil.copytree(minilm_run.path, tmp_path / "run")
    killed = Run(tmp_path / "run")
    killed.update(status="running")
    found = diagnose(killed)
    assert found.verdict == "interrupted"
    assert found.findings[0].kind == "interrupted"


def test_a_collapsed_classifier_under_a_high_rate_is_not_told_to_raise_it():
    files = Files()
    training(learning_rate=0.01)(files)
    says_one_class(files)
    fix = next(f.fix for f in files.findings() if f.kind == "only_frequent_class")
    assert "higher" not in fix
