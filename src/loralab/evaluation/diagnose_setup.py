"""Causes that configuration, plan and rows show before a step is made.

The thresholds are rules of thumb: a finding says what to try first, it is no proof.
"""

from __future__ import annotations

from collections.abc import Iterator

from loralab.evaluation.diagnose_case import Case, Finding

FEW_STEPS, FEW_ROWS = 50, 200
LOW_SCALE, HIGH_SCALE = 0.25, 8
SMALL_SHARE, SMALL_SUPERVISION = 5e-4, 0.02
WRITES = {"causal-lm", "seq2seq-lm"}
QUERY_AND_VALUE = {"q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "q", "v"}
LOST = {
    "at_max_length": "reach task.params.max_length and are probably cut",
    "longer_than_max_length_left_out": "are longer than max_length and left out",
    "longer_than_max_target_length_left_out": "have too long a target and are left out",
    "sources_cut": "have their source cut",
}


def _few_steps(case: Case) -> Iterator[Finding]:
    if 0 < case.steps < FEW_STEPS:
        batch = case.training["per_device_train_batch_size"]
        seen = f"{case.steps} optimizer steps (batch {batch}"
        seen += f" × {case.training['gradient_accumulation_steps']}"
        processes = case.training.get("parallel", {}).get("processes", 1)
        seen += f" × {processes} processes)" if processes > 1 else ")"
        more = f"training.max_steps={max(200, 4 * case.steps)}"
        if case.training["max_steps"] <= 0:
            epochs = case.training["num_train_epochs"]
            more = f"training.num_train_epochs={epochs * -(-200 // case.steps):g}"
        yield Finding("few_steps", "cause", seen, f"{more}, or smaller batches")


def _few_rows(case: Case) -> Iterator[Finding]:
    if 0 < case.train_rows < FEW_ROWS:
        limit = case.config["data"]["max_rows"]["train"]
        read = case.record["data"]["report"]["read"]
        seen = f"{case.train_rows:,} train rows"
        fix = "bring more rows; a smaller peft.params.rank"
        if limit is not None and limit <= case.train_rows:
            seen += f" (the source has {read:,} in all)"
            fix = f"raise data.max_rows.train (now {limit:,})"
        yield Finding("few_rows", "suspect", seen, fix)


def _scale(case: Case) -> Iterator[Finding]:
    scales = {float(k): v for k, v in case.plan.get("scales", {}).items()}
    shown = ", ".join(f"{k:g} on {v} modules" for k, v in sorted(scales.items()))
    odd = [s for s in scales if not LOW_SCALE <= s <= HIGH_SCALE]
    if odd:
        rank = case.config["peft"]["params"].get("rank")
        fix = f"peft.params.alpha={2 * rank} (twice the rank)" if rank else "alpha"
        yield Finding(
            "odd_scale", "cause", f"effective scale alpha / rank {shown}", fix
        )
    elif len(scales) > 1:
        fix = "give alpha_pattern the same ratio to rank_pattern, unless this is meant"
        seen = f"effective scale differs over modules: {shown}"
        yield Finding("unequal_scale", "suspect", seen, fix)


def _targets(case: Case) -> Iterator[Finding]:
    targets = case.plan.get("targets", {})
    names = {pattern.replace("\\", "").split(".")[-1] for pattern in targets}
    count, layers = sum(targets.values()), case.record.get("base", {}).get("layers", 0)
    if targets and (names <= QUERY_AND_VALUE or count < layers):
        seen = f"{count} adapted modules in {layers} layers: {', '.join(sorted(names))}"
        fix = "peft.params.target_modules=all-linear"
        yield Finding("few_targets", "suspect", seen, fix)


def _trained_share(case: Case) -> Iterator[Finding]:
    if case.plan and case.plan["trainable"] < SMALL_SHARE * case.plan["total"]:
        share = case.plan["trainable"] / case.plan["total"]
        seen = f"{case.plan['trainable']:,} of {case.plan['total']:,} parameters are "
        fix = "a higher peft.params.rank; peft.params.target_modules=all-linear"
        yield Finding(
            "small_share", "suspect", f"{seen}trained ({100 * share:.2g} %)", fix
        )


def _supervision(case: Case) -> Iterator[Finding]:
    share = case.plan.get("supervised_share", 1.0)
    if case.config["task"]["name"] in WRITES and share < SMALL_SUPERVISION:
        seen = f"{100 * share:.2g} % of the tokens have a label"
        fix = "look at what is supervised: loralab data show EXPERIMENT"
        yield Finding("little_supervision", "suspect", seen, fix)


def _rows_lost(case: Case) -> Iterator[Finding]:
    for note, meaning in LOST.items():
        count = case.plan.get("notes", {}).get(note, 0)
        if count > 0.1 * case.train_rows:
            share = 100 * count / case.train_rows
            seen = f"{count:,} of {case.train_rows:,} train rows ({share:.0f} %) "
            length = case.config["task"]["params"].get("max_length")
            fix = f"raise task.params.max_length (now {length})"
            if "target" in note:
                fix = "raise task.params.max_target_length"
            yield Finding("rows_cut", "suspect", seen + meaning, fix)


def _rows_report(case: Case) -> Iterator[Finding]:
    data = case.record.get("data")
    if data is None:
        return
    report, policy = data["report"], case.config["data"]["duplicates"]
    read = max(1, report["read"])
    if policy == "keep" and report["leaks"]:
        seen = f"{report['leaks']:,} train rows have the input of a later split's row"
        fix = "data.duplicates=drop: the figures on such rows are not to be trusted"
        yield Finding("leaks_kept", "suspect", seen, fix)
    if report["conflicts"] > 0.05 * read:
        seen = f"{report['conflicts']:,} of {read:,} rows repeat an input with another "
        yield Finding("conflicts", "suspect", f"{seen}answer", "mend the labels")
    lost = {"malformed": report["malformed"]}
    if policy == "drop":
        lost |= {"duplicate": report["duplicates"], "leaking": report["leaks"]}
    if sum(lost.values()) > 0.5 * read:
        parts = ", ".join(f"{n:,} {kind}" for kind, n in lost.items() if n)
        seen = f"{sum(lost.values()):,} of {read:,} rows were dropped: {parts}"
        fix = "look whether data.columns leaves out what tells the rows apart"
        yield Finding("rows_dropped", "note", seen, fix)


def _clipping(case: Case) -> Iterator[Finding]:
    limit, norms = case.training["max_grad_norm"], case.norms
    over = sum(norm > limit for norm in norms)
    if limit and len(norms) >= 3 and over > 0.9 * len(norms):
        seen = f"the gradient norm is above max_grad_norm={limit:g} in {over} of "
        seen += f"{len(norms)} logs (highest {max(norms):.3g})"
        fix = "training.max_grad_norm=0 or higher, or a lower effective scale"
        yield Finding("always_clipped", "suspect", seen, fix)


def _warm_up(case: Case) -> Iterator[Finding]:
    training, planned = case.training, case.plan.get("steps", 0)
    if training["lr_scheduler_type"] == "constant" or not case.steps:
        return
    steps = round(training["warmup_ratio"] * planned)
    if steps >= 0.5 * case.steps:
        seen = f"the learning rate warms up for {steps} of {case.steps} steps done"
        yield Finding("long_warm_up", "cause", seen, "training.warmup_ratio=0.06")


def _dtype(case: Case) -> Iterator[Finding]:
    dtype = case.plan.get("dtype", "fp32")
    if dtype != "fp32" and (case.diverged or case.flat):
        seen = f"computed in {dtype} on {case.plan['device']}, and the loss "
        seen += "became NaN or infinite" if case.diverged else "does not fall"
        yield Finding("dtype", "suspect", seen, "rule it out: model.dtype=fp32")


CHECKS = (
    _warm_up,
    _scale,
    _few_steps,
    _few_rows,
    _targets,
    _trained_share,
    _rows_lost,
    _supervision,
    _rows_report,
    _clipping,
    _dtype,
)
