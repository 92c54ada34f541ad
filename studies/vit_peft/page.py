"""The page of the study of vision transformers, and accuracy against stored bytes.

It reads the `analysis.json` that `loralab study report` wrote, which draws accuracy
against trained parameters itself (``figures/pareto-*``). Stored bytes are what
the storage format predicts from shapes, exactly: the base in its format and the adapter
beside it; a QA-LoRA merges into its base without loss and takes none.

    python -m studies.vit_peft.page
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loralab import registry
from loralab.config import ExperimentConfig, StorageConfig
from loralab.errors import LoralabError
from loralab.experiments.cells import Cell
from loralab.experiments.report import read_analysis
from loralab.experiments.report_figures import quality_against
from loralab.experiments.report_tables import Analysis, read_interval
from loralab.experiments.study import Study, find_study
from loralab.models.empty import empty_base
from loralab.reporting.figures import save
from loralab.reporting.renderers import to_markdown
from loralab.reporting.tables import Column, Table, format_number
from loralab.runs.files import write_text

HERE = Path(__file__).parent
FLOAT = StorageConfig(name="safetensors", params={"dtype": "bf16"})
MEGABYTE = 1e6
WHAT = """\
The embedded ViT-S/14 (DINOv2's, tuned for saliency) at 98 px, 2,000 training and 1,000
test images of CIFAR-10 and of Fashion-MNIST, two epochs, three seeds an arm. Learning
rates were chosen by a [pilot](pilot/report.html) on validation images, one seed; every
best value lay inside its grid. All numbers and runs: [report.html](report.html)."""
HOW = """\
Stored bytes are predicted from shapes, exactly: a float base in bf16, `lora-8-nf4` on
NF4 with its adapter beside it, `qa-lora-int4` merged into its 4-bit base without loss.

    loralab data fetch cifar-10 fashion-mnist
    STUDY=studies/vit_peft
    loralab study run $STUDY/study.yaml --size evidence
    loralab study report $STUDY/study.yaml --size evidence --out $STUDY
    python -m studies.vit_peft.page

`full.yaml` is the whole grid (three bases, three image sets of the hub, eleven
methods), for a machine with the hub and a GPU; `loralab study plan` tells what it
takes."""
X = "base and adapter, stored (MB)"


def storage_of(config: ExperimentConfig) -> StorageConfig:
    """Return how the base of a run is stored once it is trained."""
    if config.peft.name == "qa-lora":
        params = config.peft.params
        kept = {"group": params["group_size"]}
        return StorageConfig(name=f"affine-int{params['bits']}", params=kept)
    return config.model.storage or FLOAT


def base_bytes(config: ExperimentConfig, labels: list[str]) -> int:
    """Return the bytes of the base's files, predicted from shapes."""
    model = config.model.model_copy(update={"storage": None})
    base = empty_base(model, "image-classification", labels)
    storage = storage_of(config)
    entry = registry.get(StorageConfig.kind, storage.name)
    params = entry.schema(**storage.params)
    return int(
        entry.facts["predict"](params, base.model, base.facts.linear, base.processor)
    )


def stored_bytes(study: Study, arm: dict[str, Any]) -> int:
    """Return the bytes of what an arm would be deployed from."""
    config = study.compose(Cell(arm["data"], arm["arm"], 0, "final", ()))
    beside = 0 if config.peft.name == "qa-lora" else int(arm["adapter_bytes"])
    return base_bytes(config, [str(label) for label in range(10)]) + beside


def costs(analysis: Analysis, data: str) -> dict[str, float]:
    """Return the stored megabytes of every arm of a data set, controls left out."""
    study = find_study(str(HERE / "study.yaml"), analysis["size"])
    return {
        one["arm"]: stored_bytes(study, one) / MEGABYTE
        for one in analysis["arms"]
        if one["data"] == data and one["arm"] in study.config.arms
    }


def summary(analysis: Analysis) -> Table:
    """Return accuracy, trained parameters and stored bytes of every arm."""
    found = {one: costs(analysis, one) for one in analysis["study"]["data"]}
    columns = (
        Column("data"),
        Column("arm"),
        Column("accuracy", "share"),
        Column("less lora-8", "share", signed=True),
        Column("p (Holm)"),
        Column("trained parameters"),
        Column("base and adapter, stored", "MB"),
    )
    compared = {(one["data"], one["arm"]): one for one in analysis["comparisons"]}
    rows = []
    for one in analysis["arms"]:
        data, arm = one["data"], one["arm"]
        if arm not in found[data]:
            continue
        beside = compared.get((data, arm), {})
        rows.append(
            (
                data,
                arm,
                read_interval(one["interval"]),
                read_interval(beside.get("difference")),
                beside.get("p_holm"),
                int(one["trainable"]),
                found[data][arm],
            )
        )
    return Table("Arms on test images, means over seeds", columns, tuple(rows))


def sentences(analysis: Analysis) -> list[str]:
    """Return what the comparisons say, in words."""
    said = []
    for data in analysis["study"]["data"]:
        of = [one for one in analysis["comparisons"] if one["data"] == data]
        by = {
            verdict: [one["arm"] for one in of if one["verdict"] == verdict]
            for verdict in ("better", "worse", "equivalent")
        }
        words = "; ".join(f"{v}: {', '.join(a) or 'none'}" for v, a in by.items())
        seen = [one["detectable"] for one in of]
        said.append(
            f"**{data}**, {len(of)} arms against `lora-8`, after Holm's correction: "
            f"{words}. Differences that such runs see with 80 % power: "
            f"{format_number(min(seen))} to {format_number(max(seen))}."
        )
    return said


def page(analysis: Analysis) -> str:
    """Return the README."""
    commits = sorted({f"`{one['commit']}`" for one in analysis["runs"]})
    figures = [
        f"![{data}: accuracy against {what}](figures/{kind}-{data}.svg)"
        for data in analysis["study"]["data"]
        for kind, what in (("pareto", "trained parameters"), ("bytes", "stored bytes"))
    ]
    parts = [
        "# Vision transformers: accuracy for trained parameters, and for stored bytes",
        analysis["study"]["question"],
        WHAT,
        *sentences(analysis),
        "In grey, the A/A floor: how far two arms of three seeds each may lie apart by "
        "noise alone. An arm inside it is not told from `lora-8` by these runs.",
        *figures,
        to_markdown(summary(analysis)),
        HOW,
        f"{len(analysis['runs'])} runs at {', '.join(commits)}.",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def draw(analysis: Analysis, folder: Path) -> None:
    """Draw accuracy against stored bytes for each data set, as SVG."""
    for data in analysis["study"]["data"]:
        drawn = quality_against(analysis, data, costs(analysis, data), X)
        save(drawn, folder, f"bytes-{data}", ("svg",))


def main() -> None:
    """Write what the report does not: the README, and a figure of bytes."""
    try:
        analysis = read_analysis(HERE)
    except LoralabError as error:
        raise SystemExit(str(error)) from None
    draw(analysis, HERE / "figures")
    write_text(HERE / "README.md", page(analysis))


if __name__ == "__main__":
    main()
