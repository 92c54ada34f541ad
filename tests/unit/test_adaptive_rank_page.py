"""The page of the study of ranks says what its analysis says, and counts the claim."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from studies.adaptive_rank import page
from transformers import GPT2Config, GPT2LMHeadModel

from loralab.experiments import analyse
from loralab.experiments.cells import Cell
from loralab.experiments.readings import Reading, Runs
from loralab.experiments.study import Study
from loralab.experiments.study_config import read_study

STUDY = page.HERE / "study.yaml"
ROWS, SPREAD = 30, 0.01
POINT = ("training.learning_rate=0.003",)
EQUAL, TWICE = 1_000.0, 2_000.0
COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def claim():
    return yaml.safe_load(page.CLAIM.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def elsewhere():
    return page.read(page.FLOOR)


def reading(data, arm, seed, value):
    run = f"{data}-{arm}-{seed}"
    cell = Cell(data, arm, seed, "final", POINT, run, "complete")
    budgets = {"trainable": TWICE if arm == page.OTHER_BUDGET else EQUAL}
    budgets |= {"tokens": 1.0, "steps": 40.0, "examples": 1.0}
    record = {"run": run, "commit": COMMIT, "rows": ROWS, "adapter_bytes": 1}
    record |= {"resumed": False}
    # without values of single rows: Student's t, in no time
    return Reading(cell, value, "lower", None, None, (), budgets, 1.0, [], record)


def analysis_of(tmp_path, shifts):
    """Return the analysis of readings whose mean is 1 + an arm's shift."""
    asked = read_study(STUDY)
    untuned = asked.model_copy(update={"tuning": None})
    study = Study(untuned, "evidence", tmp_path)
    rng = np.random.default_rng(0)
    readings = [
        reading(data, arm, offset + seed, 1 + shifts.get(arm, 0) + noise)
        for data in untuned.choices
        for arm, (_, offset) in untuned.everything.items()
        for seed in range(study.seeds(data))
        for noise in [float(rng.normal(0, SPREAD))]
    ]
    runs = Runs(study, readings)
    controls = analyse._comparisons(runs, list(untuned.controls))
    found = {
        "size": "evidence",
        "study": asked.model_dump(mode="json"),
        "better": "lower",
        "runs": [analyse._run(one) for one in readings],
        "failed": [],
        "waiting": 0,
        "arms": [analyse._arm(runs, *key) for key in analyse._spent(readings)],
        "comparisons": analyse._comparisons(runs, list(untuned.arms)),
        "controls": [
            {**one, **analyse._judged(study, one), "name": one["arm"]}
            for one in controls
        ],
        "noise": analyse._noise(runs),
        "tuning": [{"trials": [{"point": list(POINT), "value": 1.0}] * 5}],
    }
    return json.loads(json.dumps(found))


BETTER, WORSE = -0.5, 0.5
CASES = {
    "nothing": {},
    "gradient": {
        page.MEASURED: BETTER,
        page.INVERTED: WORSE,
        "linear-growth": BETTER,
        "linear-decay": WORSE,
    },
    "any order": {
        page.MEASURED: BETTER,
        page.SHUFFLED: BETTER,
        "linear-decay": BETTER,
        "linear-growth": WORSE,
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return {name: analysis_of(folder, shifts) for name, shifts in CASES.items()}


@pytest.fixture(scope="module")
def text(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    given = folder / "given.json"
    given.write_text(json.dumps(made["gradient"]), encoding="utf-8")
    page.main([str(given), "--out", str(folder)])
    return (folder / "README.md").read_text(encoding="utf-8")


def test_every_arm_and_control_is_in_the_table_on_every_set(made, elsewhere):
    study = made["gradient"]["study"]
    table = page.arms_table(made["gradient"], elsewhere)
    everything = [*study["arms"], *study["controls"]]
    wanted = {(data, arm) for data in study["data"] for arm in everything}
    assert sorted(wanted) == sorted((row[0], row[1]) for row in table.rows)
    by_arm = {row[1]: row for row in table.rows if row[0] == "trec-6"}
    assert by_arm["uniform-8"][5:] == [None] * 7
    assert {row[3] for row in table.rows} == {"0.003"}
    gradient = page.compared(made["gradient"], "trec-6", "gradient")
    assert by_arm["gradient"][7] == gradient["p_holm"]
    assert by_arm["gradient"][8].startswith("better")
    assert by_arm["gradient"][9:11] == ["above", "above"]
    assert by_arm["eva"][10] == "within"
    assert by_arm["shuffled-gradient"][5] == "gradient"


def test_the_floor_is_of_all_runs_of_one_configuration(made, elsewhere):
    floor = page.floors(made["nothing"], elsewhere)["sms-spam"]
    assert floor["here"].seeds == 10
    assert floor["aa_floor"].seeds == 10
    told = next(n for n in elsewhere["noise"] if n["data"] == "sms-spam")
    assert floor["aa_floor"].half_width(5) == pytest.approx(told["half_width"]["5"])


@pytest.mark.parametrize(
    ("case", "wins", "loses"),
    [
        ("nothing", "none", "none"),
        ("gradient", "linear-growth, gradient", "linear-decay"),
    ],
)
def test_wins_and_losses_are_those_of_the_verdicts(made, case, wins, loses):
    first, where, null, other = page.outcome_sentences(made[case])
    assert f"correction: {wins}; worse on every one: {loses}." in first
    assert ("gradient (sms-spam, trec-6)" in where) == (case == "gradient")
    assert "eva (sms-spam, trec-6)" in null
    assert page.OTHER_BUDGET in other
    assert page.OTHER_BUDGET not in first + where + null


@pytest.mark.parametrize(
    ("case", "counts"), [("nothing", False), ("gradient", True), ("any order", False)]
)
def test_a_strategy_counts_only_if_its_ranks_shuffled_are_worse(made, case, counts):
    *of_sets, _ = page.gradient_sentences(made[case])
    assert len(of_sets) == 2
    for sentence in of_sets:
        assert ("It counts" in sentence) == counts
        assert ("It does not count" in sentence) == (not counts)


@pytest.mark.parametrize(
    ("case", "word"),
    [
        ("nothing", "is not shown (null)"),
        ("gradient", "holds"),
        ("any order", "is contradicted"),
    ],
)
def test_the_prior_direction_is_judged_by_its_sign(made, case, word):
    sentences = page.prior_sentences(made[case])
    depth = [one for one in sentences if "linear-growth before" in one]
    blocks = [one for one in sentences if "mlp-heavy before" in one]
    assert len(depth) == len(blocks) == 2
    assert all(f"(linear-growth before linear-decay) {word}: " in one for one in depth)
    assert all("is not shown (null)" in one for one in blocks)


def test_the_budget_names_the_arm_that_has_another(made):
    sentence = page.budget_sentence(made["nothing"])
    assert "11 of 12 arms" in sentence
    assert "others: uniform-16 (+100.0 %)." in sentence


def test_controls_and_power_are_told(made):
    *power, controls = page.power_sentences(made["gradient"])
    assert ["sms-spam" in power[0], "trec-6" in power[1]] == [True, True]
    assert "shuffled-gradient on trec-6 (expected worse) held" in controls
    *_, controls = page.power_sentences(made["any order"])
    assert "shuffled-gradient on trec-6 (expected worse) DID NOT HOLD" in controls


def test_the_published_arm_is_the_baseline_by_its_count(claim):
    table = page.claim_table(claim)
    by_arm = {row[0]: row for row in table.rows}
    assert by_arm["uniform 16"][3] == 6_291_456
    assert by_arm["published linear_decay"][2:4] == [6_291_456, 6_291_456]
    assert by_arm["published attention_heavy"][3] == 6_291_456 * 13 // 16
    decay, heavy = by_arm["linear-decay"], by_arm["attention-heavy"]
    cheapest = 2 * claim["shape"]["n_embd"]
    for row in (decay, heavy):
        assert 6_291_456 - cheapest < row[3] <= 6_291_456
    assert int(decay[4].split("–")[0]) > 2 * int(decay[6].split("–")[-1])
    assert int(heavy[4].split("–")[0]) > int(heavy[5].split("–")[-1])
    _, first, second, real = page.claim_sentences(claim, table)
    assert "16, 6,291,456 parameters, the count as quoted" in first
    assert "both arms are one configuration" in first
    assert "That is −18.8 % of the baseline's parameters" in second
    assert "Equal to the baseline's: linear-decay, attention-heavy" in real


def test_a_quoted_count_that_is_not_the_model_s_is_told(claim):
    one = {**claim["arms"]["linear_decay"], "parameters": 6_291_457}
    sentence = page.trained_sentence("linear_decay", one, claim)
    assert "they differ" in sentence
    assert "one configuration" not in sentence


def test_the_count_is_peft_s(claim):
    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**{**claim["shape"], "n_layer": 2}))
        names = ["c_attn", "c_proj", "c_fc"]
        adapted = get_peft_model(
            model, LoraConfig(r=16, target_modules=names, fan_in_fan_out=True)
        )
    modules = page.claimed_modules({**claim["shape"], "n_layer": 2})
    ranks = page.given("uniform", modules, 16)
    assert adapted.get_nb_trainable_parameters()[0] == page.spent(ranks, modules)


def test_the_noise_is_set_beside_the_gap_and_decides_nothing(made, elsewhere, claim):
    table = page.noise_table(claim, made["nothing"], elsewhere)
    assert len(table.rows) == 2 + 4 + 1
    assert table.rows[-1][-1] == claim["gap_nats"]
    first, same_task, last = page.noise_sentences(claim, table)
    assert "as much as the gap on: reuters-r8 (aa_floor)" in first
    assert "On chatterbot" in same_task
    assert "less than the gap" in same_task
    assert "What decides is what was trained" in last
    smaller = {**claim, "gap_nats": 0.001}
    *_, same_task, _ = page.noise_sentences(smaller, table)
    assert "as much as the gap" in same_task


def test_the_claim_s_base_and_rows_compose_for_every_arm(made, claim):
    sentences = page.again_sentences(made["nothing"], claim)
    assert "`microsoft/DialoGPT-medium`" in sentences[0]
    assert "`tatsu-lab/alpaca`" in sentences[0]
    assert "All 12 arms" in sentences[2]
    data = yaml.safe_load(sentences[1].strip("`").removeprefix("yaml"))["data"]
    assert data["alpaca"]["overrides"] == ["model=dialogpt-medium", "data=alpaca"]


def test_the_page_that_the_script_writes_has_all_of_it(text, made, elsewhere, claim):
    for part in ("## What the runs show", f"## “{claim['words']}”", COMMIT, "minilm"):
        assert part in text
    assert "120 runs: 9 arms and 3 controls, 5 seeds each" in text
    table = page.to_markdown(page.arms_table(made["gradient"], elsewhere))
    assert table in text
    for sentence in page.outcome_sentences(made["gradient"]):
        assert f"- {sentence}" in text


def test_runs_that_are_missing_are_told(made):
    broken = {**made["nothing"], "size": "smoke", "waiting": 3}
    broken["failed"] = [asdict(Cell("trec-6", "eva", 0, "final", POINT))]
    first, *_, last = page.measured(broken)
    assert first == "**A study of size smoke: it proves nothing.**"
    assert last == "**3 runs have not ended, 1 have failed.**"


def test_the_committed_page_says_what_the_committed_analysis_says(claim, elsewhere):
    made = page.page(page.read(page.HERE / "analysis.json"), elsewhere, claim)
    assert (page.HERE / "README.md").read_text(encoding="utf-8") == made
