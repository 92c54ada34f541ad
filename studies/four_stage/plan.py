"""What the study stores: bases, ways of an adapter into a format, seeds, sizes.

    base    a linear probe: the frozen base with the head of the task trained alone
            (a language model brings its head along, and is its own base)
    adapter LoRA, or QA-LoRA, from the same seed
    stored  each of them, by a route, in a format

What a format costs the base is told by the stored probe, what it costs the adapter by
the stored adapter; what an adapter is worth is what it gains over the probe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from loralab.config import ExperimentConfig, RouteConfig, StorageConfig, compose

PROBE, LORA, QA_LORA = "probe", "lora", "qa-lora"
MERGED, ON_GRID, BESIDE = "merge-then-quantize", "merge-into-nf4", "side-path"
NONE = "unmerged"
"""In place of a route: the trained run itself."""


@dataclass(frozen=True)
class Format:
    """A storage format.

    Attributes:
        label: In the tables.
        name: In the registry.
        params: Of it.
    """

    label: str
    name: str
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> StorageConfig:
        """What `quantize` takes."""
        return StorageConfig(name=self.name, params=self.params)


BF16 = Format("bf16", "safetensors", {"dtype": "bf16"})
INT8 = Format("int8 g32", "affine-int8")
INT4 = Format("int4 g32", "affine-int4")
INT4_64 = Format("int4 g64", "affine-int4", {"group": 64})
NF4 = Format("NF4", "nf4")
ONNX = Format("int8, ONNX Runtime", "onnx-int8")
FORMATS = {one.label: one for one in (BF16, INT8, INT4, INT4_64, NF4, ONNX)}


@dataclass(frozen=True)
class Way:
    """What is stored, and how; or a training, whose route is `NONE`.

    Attributes:
        method: `PROBE`, `LORA` or `QA_LORA`.
        route: A route's name, or `NONE`.
        format: A label of `FORMATS`; empty of a training.
    """

    method: str
    route: str = NONE
    format: str = ""

    @property
    def key(self) -> str:
        """In results and as a file's name."""
        return " ".join(part for part in (self.method, self.route, self.format) if part)

    @property
    def routed(self) -> RouteConfig:
        """What `quantize` takes."""
        return RouteConfig(name=self.route)


def stored(method: str, route: str, *formats: Format) -> tuple[Way, ...]:
    """Return the ways of a method by a route into formats."""
    return tuple(Way(method, route, one.label) for one in formats)


TRAINED = tuple(Way(method) for method in (PROBE, LORA, QA_LORA))
WAYS = (
    *TRAINED,
    *stored(PROBE, MERGED, INT8, INT4, INT4_64, NF4, ONNX),
    *stored(LORA, MERGED, BF16, INT8, INT4, INT4_64, NF4, ONNX),
    *stored(LORA, ON_GRID, NF4),
    *stored(LORA, BESIDE, INT4_64, NF4),
    *stored(QA_LORA, QA_LORA, INT4),
)
GRID_WAYS = (  # of weights that stand on the grid of 4 bits in groups of 32 already
    Way(PROBE),
    Way(LORA),
    *stored(PROBE, MERGED, INT4_64, NF4),
    *stored(LORA, MERGED, BF16, INT4_64, NF4),
    *stored(LORA, ON_GRID, NF4),
    *stored(LORA, BESIDE, INT4_64, NF4),
)


@dataclass(frozen=True)
class Base:
    """A base on a data set.

    Attributes:
        name: In the tables.
        experiment: A preset.
        overrides: Of it.
        ways: What is trained and stored.
        seeds: How many.
        own_head: Whether the base answers by itself, so that it needs no probe.
        caution: What must be said of it, in the tables.
    """

    name: str
    experiment: str
    overrides: tuple[str, ...]
    ways: tuple[Way, ...] = WAYS
    seeds: int = 3
    own_head: bool = False
    caution: str = ""

    def config(self, method: str, seed: int) -> ExperimentConfig:
        """Return the experiment of a method and a seed."""
        chosen = METHODS[LORA if self.own_head and method == PROBE else method]
        given = [*COMMON, *chosen, *self.overrides, f"training.seed={seed}"]
        return compose(self.experiment, given)


COMMON = (
    "model.dtype=fp32",
    "model.device=cpu",
    "training.callbacks=[]",
    "training.warmup_ratio=0.1",
    "evaluation.base=false",
    "evaluation.resamples=200",
)
METHODS = {
    PROBE: ("peft=linear-probe", "training.learning_rate=1e-2"),
    LORA: ("peft=lora", "training.learning_rate=1e-3"),
    QA_LORA: ("peft=qa-lora", "training.learning_rate=3e-3"),
}
"""Learning rates: those that studies/vit_peft/pilot.yaml chose."""
ON_TREC = ("training.per_device_train_batch_size=16",)
ON_CLOTHES = ("task.params.size=42", "training.num_train_epochs=1")
ON_CHAT = (
    "training.per_device_train_batch_size=2",
    "training.learning_rate=5e-4",
    "task.params.max_length=128",
)
CAUTION = (
    "its weights stood on a 4-bit grid (Q4_1, group 32) before: group 64 and NF4 only"
)


def rows(train: int, test: int) -> str:
    """Return how many rows are read."""
    return f"data.max_rows={{train: {train}, validation: 8, test: {test}}}"


SIZES = {
    "smoke": (
        Base(
            *("MiniLM, trec-6", "trec-6"),
            (*ON_TREC, rows(64, 48), "training.max_steps=4"),
            ways=(
                *TRAINED,
                *stored(PROBE, MERGED, INT4),
                *stored(LORA, MERGED, INT4),
                *stored(QA_LORA, QA_LORA, INT4),
            ),
            seeds=1,
        ),
        Base(
            *("ViT-S/14, Fashion-MNIST", "vit-fashion-mnist"),
            (*ON_CLOTHES, rows(64, 48), "training.max_steps=2"),
            ways=(
                *(Way(PROBE), Way(LORA)),
                *stored(PROBE, MERGED, NF4),
                *stored(LORA, MERGED, NF4),
                *stored(LORA, ON_GRID, NF4),
            ),
            seeds=1,
        ),
    ),
    "evidence": (
        Base(
            *("MiniLM, trec-6", "trec-6"),
            (*ON_TREC, rows(1600, 500), "training.max_steps=100"),
        ),
        Base(
            *("ViT-S/14, Fashion-MNIST", "vit-fashion-mnist"),
            (*ON_CLOTHES, rows(1600, 1000)),
        ),
        Base(
            *("SmolLM2-135M, ChatterBot", "chatterbot"),
            (*ON_CHAT, rows(60, 40), "training.max_steps=15"),
            ways=GRID_WAYS,
            seeds=1,
            own_head=True,
            caution=CAUTION,
        ),
    ),
}


@dataclass(frozen=True)
class Piece:
    """One training or one stored model.

    Attributes:
        base: Of which.
        seed: Of the training.
        way: What is done.
    """

    base: Base
    seed: int
    way: Way

    @property
    def key(self) -> str:
        """Its name, as a file's too."""
        text = f"{self.base.experiment} {self.seed} {self.way.key}"
        return "".join(c if c.isalnum() else "-" for c in text)


def pieces(size: str) -> Iterator[Piece]:
    """Yield every piece: of a seed the trainings first, then what is stored of them."""
    for base in SIZES[size]:
        for seed in range(base.seeds):
            yield from (Piece(base, seed, way) for way in base.ways)
