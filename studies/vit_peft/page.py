"""Two figures of the study of vision transformers: accuracy for parameters, for bytes.

They read the `analysis.json` that `loralab study report` wrote. Stored bytes are what
the storage format predicts from shapes, exactly: the base in its format and the adapter
beside it; a QA-LoRA merges into its base without loss and takes none.

    python -m studies.vit_peft.page
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loralab import registry
from loralab.config import ExperimentConfig, StorageConfig
from loralab.evaluation.intervals import Interval
from loralab.experiments.cells import Cell
from loralab.experiments.study import Study, find_study
from loralab.models.empty import empty_base
from loralab.reporting.figures import Point, pareto, save

HERE = Path(__file__).parent
FLOAT = StorageConfig(name="safetensors", params={"dtype": "bf16"})
MEGABYTE = 1e6
Y = "accuracy (share of test images)"


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


def point(arm: dict[str, Any], x: float) -> Point:
    """Return an arm's mean accuracy with its interval, at x."""
    found = arm["interval"]
    interval = Interval(found["value"], found["low"], found["high"])
    return Point(arm["arm"], x, interval, arm["data"])


def main() -> None:
    """Draw both figures for each data set."""
    file = HERE / "analysis.json"
    if not file.is_file():
        raise SystemExit(f"{file.name} is not there yet: run the study, then report it")
    content = json.loads(file.read_text(encoding="utf-8"))
    study = find_study(str(HERE / "study.yaml"), content["size"])
    arms = [one for one in content["arms"] if one["arm"] in study.config.arms]
    for data in study.config.choices:
        of = [one for one in arms if one["data"] == data]
        for name, label, points in (
            (
                "parameters",
                "trained parameters (count)",
                [point(one, one["trainable"]) for one in of],
            ),
            (
                "bytes",
                "base and adapter, stored (MB)",
                [point(one, stored_bytes(study, one) / MEGABYTE) for one in of],
            ),
        ):
            drawn = pareto(points, label, Y, "lower", "higher", x_log=True)
            save(drawn, HERE / "figures", f"{data}-{name}", ("svg",))


if __name__ == "__main__":
    main()
