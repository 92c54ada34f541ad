"""The page of the study of rank allocations, and a claim about them re-examined.

It reads numbers and writes words: every number on the page comes from the analysis of
the study, from that of the A/A study, from the built model, or is quoted in claim.yaml.

A difference is above the A/A floor of m seeds where it exceeds the half-width of the
interval of two arms of m seeds each that differ in nothing but the seed
(`loralab.evaluation.statistics.noise`):

    here       the baseline and its control of other seeds, one configuration
    aa_floor   the runs of studies/aa_floor on the same data set

    loralab study report studies/adaptive_rank/study.yaml --size evidence \
        --out studies/adaptive_rank
    python studies/adaptive_rank/page.py
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from loralab import compose
from loralab.adapters.allocation import (
    Module,
    allocate,
    modules_of,
    spent,
    uniform_budget,
)
from loralab.config.schema import RankStrategyConfig
from loralab.evaluation.statistics.decisions import holm
from loralab.evaluation.statistics.noise import NoiseFloor, noise_floor
from loralab.evaluation.statistics.seeds import SeedInterval, seed_interval
from loralab.experiments.cells import Cell
from loralab.experiments.report_tables import Analysis, read_interval, said
from loralab.experiments.study import Study
from loralab.experiments.study_config import StudyConfig
from loralab.models.architecture import facts_of
from loralab.reporting.renderers import to_markdown
from loralab.reporting.tables import (
    NOTHING,
    Column,
    Table,
    format_interval,
    format_number,
    unit_of,
)
from loralab.reporting.tables import Cell as Shown
from loralab.runs.files import write_text

HERE = Path(__file__).parent
CLAIM = HERE / "claim.yaml"
FLOOR = HERE.parent / "aa_floor" / "analysis.json"

OTHER_BUDGET = "uniform-16"
MEASURED, SHUFFLED, INVERTED = "gradient", "shuffled-gradient", "inverted-gradient"
SAME = "same-again"
PRIOR = (("linear-growth", "linear-decay"), ("mlp-heavy", "attention-heavy"))
"""What the literature finds when it learns where rank goes, and its opposite."""
LEAST_P = 1e-4
"""A smaller p is told as smaller than this."""


def values_of(analysis: Analysis, data: str, *arms: str) -> dict[int, float]:
    """Return the metric of arms on a data set by seed."""
    return {
        int(run["seed"]): float(run["value"])
        for run in analysis["runs"]
        if run["data"] == data and run["arm"] in arms
    }


def every(analysis: Analysis) -> list[dict[str, Any]]:
    """Return all comparisons, those of controls after those of arms."""
    return [*analysis["comparisons"], *analysis["controls"]]


def compared(analysis: Analysis, data: str, arm: str) -> dict[str, Any]:
    """Return an arm's comparison with its reference."""
    return next(o for o in every(analysis) if (o["data"], o["arm"]) == (data, arm))


def strategies(analysis: Analysis) -> list[str]:
    """Return the arms that share out the baseline's budget in another way."""
    study = analysis["study"]
    return [a for a in study["arms"] if a not in (study["baseline"], OTHER_BUDGET)]


def listed(names: Sequence[str]) -> str:
    """Return names in a row."""
    return ", ".join(names) or "none"


# ---- the floor ----


def floors(analysis: Analysis, elsewhere: Analysis) -> dict[str, dict[str, NoiseFloor]]:
    """Return data set -> ``here`` and ``aa_floor`` -> the noise floor, where known."""
    found: dict[str, dict[str, NoiseFloor]] = {}
    level = 1 - analysis["study"]["alpha"]
    for data in analysis["study"]["data"]:
        here = values_of(analysis, data, analysis["study"]["baseline"], SAME)
        there = values_of(elsewhere, data, *elsewhere["study"]["arms"])
        found[data] = {
            name: noise_floor(list(values.values()), level)
            for name, values in (("here", here), ("aa_floor", there))
            if len(values) > 2
        }
    return found


def above(one: dict[str, Any], floor: NoiseFloor | None) -> str | None:
    """Return whether a difference exceeds a floor, in a word; None: unknown."""
    if floor is None or "difference" not in one:
        return None
    wide = floor.half_width(one["seeds"])
    return "above" if abs(one["difference"]["value"]) > wide else "within"


# ---- the arms ----


def tuned(analysis: Analysis, data: str, arm: str) -> str:
    """Return what tuning set for an arm on a data set."""
    runs = [r for r in analysis["runs"] if (r["data"], r["arm"]) == (data, arm)]
    return " ".join(text.partition("=")[2] for text in runs[0]["point"]) or NOTHING


def arms_table(analysis: Analysis, elsewhere: Analysis) -> Table:
    """Return every arm and control on every data set."""
    unit = unit_of(analysis["study"]["metric"])
    known, rows = floors(analysis, elsewhere), []
    for one in analysis["arms"]:
        data, arm = one["data"], one["arm"]
        head: list[Shown] = [
            data,
            arm,
            int(one["trainable"]),
            tuned(analysis, data, arm),
            read_interval(one["interval"]) or one["value"],
        ]
        rest: list[Shown] = [None] * 7
        if arm != analysis["study"]["baseline"]:
            gap = compared(analysis, data, arm)
            rest = [
                gap["reference"],
                read_interval(gap.get("difference")),
                gap["p_holm"],
                said(gap),
                above(gap, known[data].get("here")),
                above(gap, known[data].get("aa_floor")),
                gap.get("detectable"),
            ]
        rows.append([*head, *rest])
    columns = [
        Column("data"),
        Column("arm"),
        Column("trained parameters"),
        Column("learning rate"),
        Column("cross-entropy", unit),
        Column("against"),
        Column("difference", unit, signed=True),
        Column("p, Holm", digits=4),
        Column("verdict"),
        Column("A/A floor, here"),
        Column("A/A floor, aa_floor"),
        Column("seen", unit),
    ]
    return Table("Every arm and control", columns, rows, arms_notes(analysis, known))


def arms_notes(
    analysis: Analysis, known: dict[str, dict[str, NoiseFloor]]
) -> list[str]:
    """Return what must be said below the table."""
    study = analysis["study"]
    share = f"{100 * (1 - study['alpha']):g} %"
    seeds = analysis["arms"][0]["seeds"]
    widths = [
        f"{data} {name} {format_number(floor.half_width(seeds))} ({floor.seeds} seeds)"
        for data, by_name in known.items()
        for name, floor in by_name.items()
    ]
    return [
        f"In brackets: {share} intervals. Better is {analysis['better']}. p is "
        "corrected over all arms and data sets, that of controls over all controls.",
        f"The A/A floor of two arms of {seeds} seeds, unpaired: {listed(widths)}; "
        "runs of aa_floor had other steps and were not tuned. Differences are "
        "paired by seed and row, so one within the floor may still be real.",
        "seen: the smallest true difference that such runs see with "
        f"{100 * study['power']:g} % power at Holm's strictest level.",
    ]


# ---- what the runs say ----


def measured(analysis: Analysis) -> list[str]:
    """Return how the study was made."""
    study, runs = analysis["study"], analysis["runs"]
    grid = (study["tuning"] or {}).get("grid", {})
    texts = [
        f"`{key}` in {listed([f'{v:g}' for v in some])}" for key, some in grid.items()
    ]
    trials = sum(len(one["trials"]) for one in analysis["tuning"])
    sets = []
    for data, choice in study["data"].items():
        base = compose(choice["experiment"], choice["overrides"]).model.path
        own = [run for run in runs if run["data"] == data]
        steps = listed(sorted({f"{run['steps']:.0f}" for run in own}))
        sets.append(f"{data} ({base}, {steps} steps, {own[0]['rows']} test rows)")
    seeds = sorted({str(one["seeds"]) for one in analysis["arms"]})
    found = [
        f"{len(runs)} runs: {len(study['arms'])} arms and {len(study['controls'])} "
        f"controls, {' or '.join(seeds)} seeds each, on {listed(sets)}. Each arm's and "
        f"data set's point was chosen by validation rows, on seeds that these runs do "
        f"not use: {listed(texts)}; {trials} trials in all.",
        budget_sentence(analysis),
    ]
    if analysis["size"] != "evidence":
        found.insert(0, f"**A study of size {analysis['size']}: it proves nothing.**")
    if analysis["waiting"] or analysis["failed"]:
        left = f"{analysis['waiting']} runs have not ended, {len(analysis['failed'])}"
        found.append(f"**{left} have failed.**")
    return found


def budget_sentence(analysis: Analysis) -> str:
    """Return whether the arms trained the same number of parameters."""
    baseline = analysis["study"]["baseline"]
    own = {o["data"]: o["trainable"] for o in analysis["arms"] if o["arm"] == baseline}
    off: dict[str, float] = {}
    for one in analysis["arms"]:
        share = one["trainable"] / own[one["data"]] - 1
        if abs(share) >= abs(off.get(one["arm"], 0.0)):
            off[one["arm"]] = share
    apart = analysis["study"]["tolerance"]
    near = [abs(share) for share in off.values() if abs(share) <= apart]
    far = [
        f"{arm} ({format_number(100 * share, 1, signed=True)} %)"
        for arm, share in off.items()
        if abs(share) > apart
    ]
    return (
        f"{len(near)} of {len(off)} arms and controls trained as many parameters as "
        f"{baseline} to within {format_number(100 * max(near), 2)} %; others: "
        f"{listed(far)}."
    )


def outcome_sentences(analysis: Analysis) -> list[str]:
    """Return which strategies win, lose, or show nothing."""
    baseline, own = analysis["study"]["baseline"], strategies(analysis)
    sets = list(analysis["study"]["data"])

    def who(word: str) -> dict[str, list[str]]:
        made = {
            arm: [d for d in sets if compared(analysis, d, arm)["verdict"] == word]
            for arm in own
        }
        return {arm: where for arm, where in made.items() if where}

    def where(word: str) -> str:
        return listed([f"{arm} ({listed(on)})" for arm, on in who(word).items()])

    def all_sets(word: str) -> str:
        return listed([arm for arm, on in who(word).items() if on == sets])

    margin = format_number(analysis["study"]["smallest_difference"])
    words = ", ".join(
        f"{said(compared(analysis, d, OTHER_BUDGET))} on {d}" for d in sets
    )
    return [
        f"Of {len(own)} strategies, better than {baseline} on every data set after "
        f"Holm's correction: {all_sets('better')}; worse on every one: "
        f"{all_sets('worse')}.",
        f"Better: {where('better')}. Worse: {where('worse')}.",
        f"Null results. Equivalent, the difference shown to be below {margin} nats: "
        f"{where('equivalent')}. Inconclusive, neither a difference nor its absence "
        f"shown: {where('inconclusive')}.",
        f"{OTHER_BUDGET}, at another budget, is {words}.",
    ]


def gradient_sentences(analysis: Analysis) -> list[str]:
    """Return whether the measured strategy beats uniform, shuffled and inverted."""
    found = []
    for data in analysis["study"]["data"]:
        gap, shuffled, inverted = (
            {**compared(analysis, data, name)}
            for name in (MEASURED, SHUFFLED, INVERTED)
        )
        for control in (shuffled, inverted):
            control.pop("held")  # told among the controls
        counts = gap["verdict"] == "better" and shuffled["verdict"] == "worse"
        found.append(
            f"On {data}, beside {gap['reference']}, {MEASURED} is {said(gap)}; beside "
            f"{MEASURED}, {SHUFFLED} is {said(shuffled)} and {INVERTED} "
            f"{said(inverted)}. It {'counts' if counts else 'does not count'} as a "
            "strategy that works: for that it must beat uniform ranks and its own "
            "ranks shuffled."
        )
    others = [arm for arm in strategies(analysis) if arm != MEASURED]
    found.append(
        f"No shuffled control was run of {listed(others)}: a win of one of them is of "
        "its ranks, and not yet of where they are."
    )
    return found


def contrasts(analysis: Analysis) -> dict[tuple[str, str, str], SeedInterval]:
    """Return (data, arm, opposite) -> the difference paired by seed."""
    found = {}
    for data in analysis["study"]["data"]:
        for arm, opposite in PRIOR:
            one, two = (values_of(analysis, data, name) for name in (arm, opposite))
            gaps = [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]
            if len(gaps) > 1:
                level = 1 - analysis["study"]["alpha"]
                found[data, arm, opposite] = seed_interval(gaps, level)
    return found


def shown_p(p: float) -> str:
    """Return a p as a sentence has it."""
    return f"< {LEAST_P:g}" if p < LEAST_P else format_number(p, 4)


def prior_sentences(analysis: Analysis) -> list[str]:
    """Return whether rank pays where the literature finds it."""
    made = contrasts(analysis)
    corrected = holm({"/".join(key): one.p_value for key, one in made.items()})
    sign = 1 if analysis["better"] == "higher" else -1
    found = []
    for (data, arm, opposite), one in made.items():
        p = corrected["/".join((data, arm, opposite))]
        word = "not shown (null)"
        if p < analysis["study"]["alpha"]:
            holds = sign * one.interval.value > 0
            word = "holds" if holds else "is contradicted"
        gap = format_interval(one.interval, signed=True)
        found.append(
            f"On {data} the prior direction ({arm} before {opposite}) "
            f"{'is ' if p >= analysis['study']['alpha'] else ''}{word}: {gap} nats, "
            f"p {shown_p(p)}."
        )
    found.append(
        f"These {len(made)} contrasts were not among the planned comparisons: they are "
        "paired by seed, are about these test rows, and are corrected among themselves."
    )
    return found


def power_sentences(analysis: Analysis) -> list[str]:
    """Return what the comparisons could see, and whether controls held."""
    found = []
    for data in analysis["study"]["data"]:
        own = [o for o in analysis["comparisons"] if o["data"] == data]
        seen = [one["detectable"] for one in own if "detectable" in one]
        weak = sum(one["underpowered"] for one in own)
        span = (
            " to ".join(map(format_number, (min(seen), max(seen)))) if seen else NOTHING
        )
        margin = format_number(own[0]["smallest_difference"])
        found.append(
            f"Power: on {data} the smallest true difference seen with "
            f"{100 * analysis['study']['power']:g} % is {span} nats by arm; {margin} "
            f"is of interest, and {weak} of {len(own)} comparisons are too weak "
            "for it: an inconclusive of these says nothing."
        )
    words = {True: "held", False: "DID NOT HOLD", None: "could not be shown"}
    controls = [
        f"{one['name']} on {one['data']} (expected {one['expected']}) "
        + words[one["held"]]
        for one in analysis["controls"]
    ]
    return [*found, f"Controls: {listed(controls)}."]


def floor_sentences(analysis: Analysis, elsewhere: Analysis) -> list[str]:
    """Return which strategies differ by more than seeds do."""
    known, found = floors(analysis, elsewhere), []
    for data, by_name in known.items():
        gaps = [compared(analysis, data, arm) for arm in strategies(analysis)]
        for name, floor in by_name.items():
            over = [one["arm"] for one in gaps if above(one, floor) == "above"]
            wide = format_number(floor.half_width(gaps[0]["planned"]))
            found.append(
                f"Above the A/A floor on {data} ({name}, {wide} nats): {listed(over)}."
            )
    return found


# ---- the claim ----


def number(cell: Shown) -> float:
    """Return a cell that is a number."""
    assert isinstance(cell, int | float)
    return cell


def claimed_modules(shape: dict[str, int]) -> list[Module]:
    """Return all linear modules of GPT-2 of a shape, built without weights."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(GPT2Config(**shape))
    facts = facts_of(model)
    return modules_of(facts, model, facts.linear)


def given(strategy: str, modules: Sequence[Module], rank: int) -> dict[str, int]:
    """Return ranks of a strategy at the parameters of a uniform rank."""
    budget = uniform_budget(modules, rank)
    named = RankStrategyConfig(name=strategy)
    return allocate(named, modules, budget, None, 0)


def ranks_of(
    ranks: dict[str, int], modules: Sequence[Module], kind: str, depth: int
) -> str:
    """Return the ranks of a kind of module in a layer; rounding may part them."""
    own = {ranks[m.name] for m in modules if (m.kind, m.depth) == (kind, depth)}
    return "–".join(str(rank) for rank in sorted(own))


def claim_table(claim: dict[str, Any]) -> Table:
    """Return what was trained under the published names, and what they would be."""
    modules = claimed_modules(claim["shape"])
    rank = claim["baseline_rank"]
    layers = sorted({m.depth for m in modules})
    cases = [(f"uniform {rank}", "the baseline", given("uniform", modules, rank), None)]
    for name, one in claim["arms"].items():
        trained = given("uniform", modules, one["trained_rank"])
        word = f"published {name}"
        cases.append(
            (word, f"uniform {one['trained_rank']}", trained, one["parameters"])
        )
    for one in claim["arms"].values():
        real = given(one["strategy"], modules, rank)
        cases.append((one["strategy"], f"budget of uniform {rank}", real, None))
    rows: list[list[Shown]] = []
    for name, word, ranks, told in cases:
        spans = [
            ranks_of(ranks, modules, kind, layer)
            for layer in (layers[0], layers[-1])
            for kind in ("attention", "mlp")
        ]
        rows.append([name, word, told, spent(ranks, modules), *spans])
    columns = [
        Column("arm"),
        Column("ranks"),
        Column("parameters, published"),
        Column("parameters, counted"),
        Column("attention, first layer"),
        Column("MLP, first layer"),
        Column("attention, last layer"),
        Column("MLP, last layer"),
    ]
    title = f"LoRA on all {len(modules)} linear modules of {claim['base']}'s shape"
    return Table(title, columns, rows, ["Ranks of two values are parted by rounding."])


def trained_sentence(name: str, one: dict[str, Any], claim: dict[str, Any]) -> str:
    """Return what was trained under a published name.

    One LoRA configuration has one rank, so what was trained is uniform; its rank is
    quoted, and a quoted count must bear out, where there is one.
    """
    a_rank = uniform_budget(claimed_modules(claim["shape"]), 1).amount
    trained, own = (a_rank * r for r in (one["trained_rank"], claim["baseline_rank"]))
    told = one["parameters"]
    if told is not None and told != trained:
        return (
            f"{name} was published with {told:,} parameters, and uniform rank "
            f"{one['trained_rank']} has {trained:,}: they differ, so the quoted rank "
            "is not what was trained."
        )
    source = "the rank as quoted" if told is None else "the count as quoted"
    text = (
        f"What was trained as {name} is one rank everywhere, for one configuration has "
        f"one rank: {one['trained_rank']}, {trained:,} parameters, {source}. "
    )
    if trained == own:
        return text + "That is the baseline itself: both arms are one configuration."
    share = format_number(100 * (trained / own - 1), 1, signed=True)
    return f"{text}That is {share} % of the baseline's parameters."


def claim_sentences(claim: dict[str, Any], counted: Table) -> list[str]:
    """Return what script and counts say of the claim."""
    count = {str(row[0]): int(number(row[3])) for row in counted.rows}
    own = count[f"uniform {claim['baseline_rank']}"]
    real = [(one["strategy"], count[one["strategy"]]) for one in claim["arms"].values()]
    alike = listed([name for name, parameters in real if parameters == own])
    return [
        f"“{claim['words']}” ({claim['base']}, {claim['data']}). {claim['origin']}",
        *(trained_sentence(name, one, claim) for name, one in claim["arms"].items()),
        "The real strategies at the baseline's budget have "
        + listed([f"{parameters:,} ({name})" for name, parameters in real])
        + " parameters, in other ranks (see the table). Equal to the baseline's: "
        f"{alike}; so a count alone does not tell them apart, and the script does.",
    ]


def noise_table(claim: dict[str, Any], *analyses: Analysis) -> Table:
    """Return how much two runs of one configuration differ here, by data set."""
    rows: list[list[Shown]] = []
    for analysis in analyses:
        study = analysis["study"]
        same = [study["baseline"], SAME] if study["baseline"] else list(study["arms"])
        for data, choice in study["data"].items():
            config = compose(choice["experiment"], choice["overrides"])
            values = list(values_of(analysis, data, *same).values())
            floor = noise_floor(values, 1 - study["alpha"])
            own = next(run for run in analysis["runs"] if run["data"] == data)
            sizes = [len(values), int(own["steps"]), int(own["rows"])]
            head = [study["name"], data, config.model.path, config.task.name]
            rows.append([*head, *sizes, floor.sd, float(floor.pairs[-1])])
    quoted = [claim[k] for k in ("seeds", "optimizer_steps", "evaluation_examples")]
    head = ["the claim (quoted)", claim["data"], claim["base"], "causal-lm"]
    rows.append([*head, *quoted, None, claim["gap_nats"]])
    columns = [
        Column("study"),
        Column("data"),
        Column("base"),
        Column("task"),
        Column("seeds"),
        Column("steps"),
        Column("test rows"),
        Column("sd between seeds", "nats"),
        Column("two runs differ at most", "nats"),
    ]
    title = "Runs that differ in nothing but the seed, beside the published gap"
    return Table(title, columns, rows)


def noise_sentences(claim: dict[str, Any], made: Table) -> list[str]:
    """Return what the noise here does and does not say of the published gap."""
    *own, last = made.rows
    gap, pairs = claim["gap_nats"], [number(row[-1]) for row in own]
    reach = [f"{row[1]} ({row[0]})" for row in own if number(row[-1]) >= gap]
    alike = [row for row in own if row[3] == last[3]]
    found = [
        f"The gap is {format_number(gap)} nats, from {claim['seeds']} seed, "
        f"{claim['optimizer_steps']} optimizer steps and "
        f"{claim['evaluation_examples']} evaluation examples; "
        f"{claim['arms_that_ended_in_nan']} arms were NaN. Here, two runs of one "
        f"configuration differ by at most {format_number(min(pairs))} to "
        f"{format_number(max(pairs))} nats by data set, by as much as the gap on: "
        f"{listed(reach)}.",
    ]
    for row in alike:
        pair = number(row[-1])
        word = "less than" if pair < gap else "as much as"
        found.append(
            f"On {row[1]}, of the claim's kind of task, that is {format_number(pair)} "
            f"nats, {word} the gap."
        )
    found.append(
        "This is the noise of other models on other rows, and it is no estimate of the "
        "claim's: one seed tells nothing of its own noise. What decides is what was "
        "trained: where both arms are one configuration, their gap holds no effect of "
        "rank allocation, however large."
    )
    return found


# ---- the same question elsewhere ----


def again_sentences(analysis: Analysis, claim: dict[str, Any]) -> list[str]:
    """Return how to ask the same on the claim's base and rows; compose every arm."""
    name = claim["data"].lower()
    asked = {"data": {name: claim["again"]}}
    study = Study(
        StudyConfig.model_validate({**analysis["study"], **asked}), "evidence"
    )
    point = study.points()[0]
    configs = [
        study.compose(Cell(name, arm, 0, "final", point))
        for arm in study.config.everything
    ]
    base, source = configs[0].model.path, configs[0].data.source.params["path"]
    text = yaml.safe_dump(asked, sort_keys=False).rstrip()
    overrides = " ".join(claim["again"]["overrides"])
    return [
        f"Two config values lead to the claim's base (`{base}`) and rows (`{source}`). "
        "In `study.yaml`, put this for `data`:",
        f"```yaml\n{text}\n```",
        f"All {len(configs)} arms and controls compose with it; what it takes is told "
        "before anything is trained. It needs the hub, and in practice a GPU. It was "
        "not run for this page.",
        "```bash\n"
        f"loralab ranks {claim['again']['experiment']} {overrides} "
        '"peft.params.ranks={name: linear-decay}"\n'
        "loralab study plan studies/adaptive_rank/study.yaml --size evidence\n"
        "loralab study run studies/adaptive_rank/study.yaml --size evidence\n```",
    ]


def bullets(texts: Sequence[str]) -> str:
    """Return sentences as a list."""
    return "\n".join(f"- {text}" for text in texts)


def page(analysis: Analysis, elsewhere: Analysis, claim: dict[str, Any]) -> str:
    """Return the README."""
    counted, noise = claim_table(claim), noise_table(claim, analysis, elsewhere)
    commits = sorted({f"`{run['commit']}`" for run in analysis["runs"]})
    outcomes = [*outcome_sentences(analysis), *gradient_sentences(analysis)]
    limits = [*floor_sentences(analysis, elsewhere), *power_sentences(analysis)]
    return "\n\n".join(
        [
            "# Where the rank goes, at an equal budget",
            f"**{analysis['study']['question']}**",
            *measured(analysis),
            "## What the runs show",
            bullets([*outcomes, *prior_sentences(analysis), *limits]),
            to_markdown(arms_table(analysis, elsewhere)).rstrip(),
            "All tables, figures and runs: [report.html](report.html), "
            "[tables](tables), [analysis.json](analysis.json).",
            f"## “{claim['words']}”",
            bullets([*claim_sentences(claim, counted), *noise_sentences(claim, noise)]),
            to_markdown(counted).rstrip(),
            to_markdown(noise).rstrip(),
            f"## On {claim['base']} and {claim['data']}",
            *again_sentences(analysis, claim),
            f"Measured at commit {listed(commits)}. This page is written by "
            "`python studies/adaptive_rank/page.py`; of the claim, what is quoted is "
            "in [claim.yaml](claim.yaml).\n",
        ]
    )


def read(file: Path) -> Analysis:
    """Return an analysis."""
    found: Analysis = json.loads(file.read_text(encoding="utf-8"))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "analysis", type=Path, nargs="?", default=HERE / "analysis.json"
    )
    parser.add_argument("--floor", type=Path, default=FLOOR, help="of the A/A study")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the README")
    asked = parser.parse_args(arguments)
    claim = yaml.safe_load(CLAIM.read_text(encoding="utf-8"))
    text = page(read(asked.analysis), read(asked.floor), claim)
    write_text(asked.out / "README.md", text)
    print(f"wrote {asked.out / 'README.md'}")


if __name__ == "__main__":
    main()
