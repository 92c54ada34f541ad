"""How an analysis of adapters, and what was made of them, look in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from loralab.units import percent, size

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from loralab.experiments.merge_tuning import Tuned
    from loralab.lowrank.files import AdapterFolder
    from loralab.merging.analysis.findings import Analysis
    from loralab.merging.export.bake import Baked
    from loralab.merging.export.exported import Exported
    from loralab.merging.method import Method

WHOLE = 0.9995
"""A share from which on 100.0 % is shown."""
PAIRS = 15
"""How many pairs of adapters are shown; ten adapters have 45."""


def tasks_table(found: Analysis) -> Table:
    """Return what each adapter's update is, over all layers."""
    table = Table("adapter", title="the updates ΔW", title_justify="left")
    for name in ("Σ rank", "used", "norm", "effective rank", "stable rank"):
        table.add_column(name, justify="right")
    for name, task in zip(found.names, found.tasks, strict=True):
        table.add_row(
            name,
            f"{task.rank:,}",
            f"{task.used:,}",
            f"{task.norm:.4g}",
            f"{task.effective_rank:.2f}",
            f"{task.stable_rank:.2f}",
        )
    return table


def pairs_table(found: Analysis) -> Table:
    """Return what each pair of adapters shares, over all layers, most alike first."""
    ranked = sorted(found.pairs, key=lambda pair: -abs(pair.cosine or 0.0))
    more = f": the {PAIRS} most alike of {len(ranked)}, all are in --json"
    table = Table(
        "adapters",
        title="by pairs" + (more if len(ranked) > PAIRS else ""),
        title_justify="left",
        caption="shared: of the spans of two ΔW; rows of A: their cosine, near 1 of "
        "one seed; signs against: 50 % is chance",
        caption_justify="left",
    )
    names = ("cosine", "outputs shared", "inputs shared", "rows of A", "signs against")
    for name in names:
        table.add_column(name, justify="right")
    for pair in ranked[:PAIRS]:
        table.add_row(
            f"{found.names[pair.one]} · {found.names[pair.other]}",
            _number(pair.cosine, "+.3f"),
            _share(pair.left.overlap if pair.left else None),
            _share(pair.right.overlap if pair.right else None),
            _number(pair.rows, "+.3f"),
            _share(pair.conflict.value if pair.conflict else None),
        )
    return table


def drawn(found: Analysis, folder: Path) -> list[Path]:
    """Write how alike the updates are, and their spectra over all layers."""
    from loralab.reporting.figures import Decay, decay, save, similarity_map

    *tasks, whole = found.spectra()
    named = zip(found.names, tasks, strict=True)
    spectra = [*(Decay(*one) for one in named), Decay("sum", whole, True)]
    spectra = [one for one in spectra if any(one.sigma)]
    alike = similarity_map(found.cosines(), found.names, "cosine (of two ΔW)")
    paths = save(alike, folder, "cosines")
    return paths + (save(decay(spectra), folder, "spectra") if spectra else [])


def summary(found: Analysis) -> list[str]:
    """Return ranks, what projection and cuts would take away, and the sentences."""
    cuts = ", ".join(f"{cut.rank}: {percent(cut.total)}" for cut in found.cuts)
    modes: dict[str, list[str]] = {}
    for one in found.removals:
        modes.setdefault(one.mode, []).append(
            f"{one.threshold:g}: {percent(one.share)}"
        )
    return [
        f"rank     {found.total_rank:,} in all for an exact merge, "
        f"{found.sum_rank:,} of them used",
        f"cut to   {cuts} of the sum's energy kept",
        *(f"removed  by opcm mode={m} at {', '.join(s)}" for m, s in modes.items()),
        f"alpha    {found.suggested_threshold:.2f} is a heuristic alpha_threshold "
        f"(similarity {found.similarity:.3f})",
        *(f"* {verdict.sentence}" for verdict in found.verdicts),
    ]


def cost(method: Method, sources: Sequence[AdapterFolder]) -> str:
    """Return what a merge will read: adapters, layers, ranks."""
    ranks = [sorted({m.rank for m in source.modules.values()}) for source in sources]
    spans = ["–".join(map(str, sorted({r[0], r[-1]}))) for r in ranks]
    each = spans[0] if len(set(spans)) == 1 else ", ".join(spans)
    modules = {module for source in sources for module in source.modules}
    many = "s" if len(sources) > 1 else ""
    return (
        f"{method.name} of {len(sources)} adapter{many} of rank {each} in "
        f"{len(modules)} layers …"
    )


def exported_lines(made: Exported, method: Method) -> list[str]:
    """Return what was written: size, ranks, error, what each task keeps."""
    ranks = [layer.rank for layer in made.layers]
    used = sum(layer.of for layer in made.layers)
    span = " to ".join(map(str, sorted({min(ranks), max(ranks)})))
    worst = max(made.layers, key=lambda layer: layer.relative_error)
    most = f"; {percent(worst.relative_error, 2)} in {worst.name}" if made.error else ""
    kept = ", ".join(f"{name} {percent(share)}" for name, share in made.kept.items())
    if min(made.kept.values()) >= WHOLE:
        kept = "100.0 % of each"
    lines = [
        f"method   {method.name}; the norm rule scales by {made.scale:.4g}"
        if method.normed
        else f"method   {method.name}",
        f"written  {made.room}: rank {span}, {sum(ranks):,} of {used:,} in "
        f"{len(ranks)} layers; {made.dtype}, {size(made.bytes)}",
        f"error    {made.error:.3g} of truncation "
        f"({percent(made.relative_error, 2)}{most}), "
        f"{made.rounding:.2g} of rounding ({made.relative_rounding:.1e})",
        f"energy   {percent(made.energy, 2)} of the merged update; of the tasks: "
        f"{kept}",
    ]
    if made.head:
        lines.append(f"head     that of {made.head}")
    elif made.heads:
        lines.append(f"heads    of {', '.join(made.heads)}: beside it, in heads/")
    if made.left_out:
        lines.append(
            f"without  {', '.join(made.left_out)}, which not all adapters have alike"
        )
    lines.append(f"adapter  {made.folder}")
    if made.heads:
        lines[-1] += f"; try: loralab infer {made.folder} --head {made.heads[0]} TEXT"
    return lines


def baked_lines(made: Baked) -> list[str]:
    """Return which weights an adapter went into, and what rounding took of it."""
    worst = max(made.weights, key=lambda weight: weight.relative_rounding)
    return [
        f"baked    {len(made.weights)} weights; rounding to the base's dtype changes "
        f"the update by {percent(made.relative_rounding, 2)} "
        f"({percent(worst.relative_rounding, 2)} in {worst.module})",
        f"model    {made.folder}",
    ]


def trials_table(found: Tuned) -> Table:
    """Return the weights that were tried, best first, ten at most."""
    title = f"weights, on at most {found.rows} validation rows of each task"
    table = Table(title=title, title_justify="left")
    for name in (*found.names, "cross-entropy", "mean accuracy"):
        table.add_column(name, justify="right")
    ranked = sorted(found.trials, key=lambda trial: trial.cross_entropy)
    for trial in ranked[:10]:
        table.add_row(
            *(f"{weight:.3g}" for weight in trial.weights),
            f"{trial.cross_entropy:.4f}",
            f"{sum(trial.accuracy) / len(trial.accuracy):.3f}",
        )
    return table


def tuned_line(found: Tuned) -> str:
    """Return the choice beside weights of 1, and what it is worth."""
    weights = ", ".join(f"{weight:.4g}" for weight in found.best.weights)
    if found.best.weights == found.plain.weights:
        return (
            f"tuned    none of {len(found.trials)} was better than weights of 1: "
            f"cross-entropy {found.plain.cross_entropy:.4f}"
        )
    return (
        f"tuned    weights {weights}: cross-entropy {found.best.cross_entropy:.4f}, "
        f"with weights of 1 {found.plain.cross_entropy:.4f}; the best of "
        f"{len(found.trials)} on these rows, so measure it on others"
    )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form).replace("-", "−")


def _share(value: float | None) -> str:
    return "–" if value is None else percent(value)
