"""The schema of an experiment: what may stand in its YAML, and what it means.

Every model is frozen and forbids unknown keys. A thing that is chosen by name (task,
data source, PEFT method) is ``{name, params}``; its `params` are judged by the schema
that the thing itself declares, so a new plug-in changes nothing here.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from loralab import registry
from loralab.config.parallel import ParallelConfig
from loralab.errors import ConfigError
from loralab.registry import Strict

if TYPE_CHECKING:
    from transformers import TrainingArguments


class Named(Strict):
    """A thing chosen by name, with the params that its own schema allows."""

    kind: ClassVar[str]

    name: str
    params: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("name")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        try:
            registry.get(cls.kind, name)
        except ConfigError as error:
            raise PydanticCustomError("loralab", "{m}", {"m": str(error)}) from None
        return name

    @field_validator("params")
    @classmethod
    def _judged_by_its_own_schema(
        cls, params: dict[str, Any], info: ValidationInfo
    ) -> dict[str, Any]:
        if "name" not in info.data:  # the name itself was wrong: one error is enough
            return params
        schema = registry.get(cls.kind, info.data["name"]).schema
        return schema.model_validate(params).model_dump(mode="json")


class TaskConfig(Named):
    """How rows become model inputs, and what is supervised."""

    kind = "task"


class SourceConfig(Named):
    """Where rows come from."""

    kind = "data source"


class PEFTConfig(Named):
    """The PEFT method and its params."""

    kind = "PEFT method"
    name: str = "lora"


class _Bare(Named):
    """A bare name will do, and `_` for `-` in it."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name", mode="before")
    @classmethod
    def _dashes(cls, name: Any) -> Any:
        return name.replace("_", "-") if isinstance(name, str) else name


class RankStrategyConfig(_Bare):
    """How ranks are allocated; a bare name will do, and `_` for `-` in it."""

    kind = "rank strategy"
    name: str = "uniform"


class RouteConfig(_Bare):
    """How an adapter gets into stored weights; a bare name will do."""

    kind = "route"


class MergeConfig(_Bare):
    """A merge method and its params."""

    kind = "merge method"


class MetricConfig(Named):
    """A metric; its bare name will do where it needs no params."""

    kind = "metric"

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class StorageConfig(_Bare):
    """How weights are stored; a bare name will do, and `_` for `-` in it."""

    kind = "storage format"


class ModelConfig(Strict):
    """The base model."""

    path: str = Field(
        description="`embedded:NAME`, a directory beginning with `.`, `/` or `~`, or a "
        "hub id `ORG/NAME`"
    )
    revision: str | None = Field(
        None, description="hub revision; resolved to a commit and locked into the run"
    )
    dtype: Literal["best", "fp32", "bf16", "fp16"] = Field(
        "best",
        description="dtype of base weights and matrix products; `best` is bf16 where "
        "the hardware computes in it, else fp32. Trained weights are always fp32",
    )
    device: Literal["best", "cpu", "cuda", "mps"] = Field(
        "best", description="`best` takes cuda, then mps, then cpu"
    )
    device_map: Literal["auto"] | None = Field(
        None, description="`auto` spreads a large model over several GPUs and memory"
    )
    attn_implementation: Literal["best", "sdpa", "eager"] = Field(
        "best",
        description="`best` is sdpa where the class has it, else eager; of images on a "
        "CPU eager, which is faster there",
    )
    storage: StorageConfig | None = Field(
        None,
        description="quantize the base's linear modules as they are loaded, and train "
        "on that (QLoRA): nf4, nf4-dq, int8, affine-int4, affine-int8; null is float",
    )

    @field_validator("storage")
    @classmethod
    def _can_be_trained_on(cls, storage: StorageConfig | None) -> StorageConfig | None:
        kind = StorageConfig.kind
        if storage and not registry.get(kind, storage.name).facts.get("trains"):
            of_all = registry.entries(kind).items()
            able = [name for name, entry in of_all if entry.facts.get("trains")]
            raise PydanticCustomError(
                "loralab",
                "{n} is not trained on; choose from {a}, or null",
                {"n": storage.name, "a": ", ".join(able)},
            )
        return storage

    @model_validator(mode="after")
    def _one_way_to_place(self) -> ModelConfig:
        if self.device_map and self.device == "cpu":
            raise PydanticCustomError(
                "loralab",
                "device_map=auto spreads over GPUs, and device is cpu",
            )
        return self


class MaxRows(Strict):
    """How many rows of a split are kept at most; the seed decides which."""

    train: int | None = Field(None, gt=0)
    validation: int | None = Field(None, gt=0)
    test: int | None = Field(None, gt=0)


class DataConfig(Strict):
    """Rows: their source, columns, splits, and what happens to bad ones."""

    source: SourceConfig
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="the task's column name -> the name it has in the source",
        examples=[{"text": "COLUMN"}],
    )
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="taken from train if the source has no such split"
    )
    test_fraction: float = Field(
        0.1, ge=0, lt=1, description="taken from train if the source has no such split"
    )
    max_rows: MaxRows = MaxRows()
    seed: int = Field(0, ge=0, description="decides the splits and `max_rows`")
    duplicates: Literal["drop", "error", "keep"] = Field(
        "drop",
        description="rows that repeat another, or whose input stands in a later split "
        "too (a leak), be it that of an earlier turn. `drop` counts what it drops",
    )
    malformed: Literal["error", "skip"] = Field(
        "error", description="a row that the task cannot use; `skip` counts them"
    )

    @model_validator(mode="after")
    def _fractions_leave_training_rows(self) -> DataConfig:
        if self.validation_fraction + self.test_fraction >= 1:
            raise PydanticCustomError(
                "loralab",
                "validation_fraction + test_fraction is {s}, so nothing is left to "
                "train on; make the sum less than 1",
                {"s": self.validation_fraction + self.test_fraction},
            )
        return self


class EarlyStoppingConfig(Strict):
    """Stop when the validation loss no longer falls, and keep the best checkpoint."""

    patience: int = Field(3, gt=0, description="evaluations without improvement")
    threshold: float = Field(0.0, ge=0, description="smallest fall that counts")


class CallbackConfig(Named):
    """A tracker or monitor of a training."""

    kind = "callback"


class TrainingConfig(Strict):
    """How the adapter is trained. Names are those of transformers."""

    num_train_epochs: float = Field(3.0, gt=0)
    max_steps: int = Field(-1, ge=-1, description="overrides num_train_epochs if > 0")
    per_device_train_batch_size: int = Field(
        8, gt=0, description="rows a micro-batch; packs where the task packs rows"
    )
    gradient_accumulation_steps: int = Field(1, gt=0)
    learning_rate: float = Field(2e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    warmup_ratio: float = Field(0.06, ge=0, lt=1, description="share of all steps")
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial"
    ] = "linear"
    max_grad_norm: float = Field(1.0, ge=0, description="0 switches clipping off")
    optim: Literal[
        "adamw_torch", "adafactor", "sgd", "adamw_8bit", "paged_adamw_8bit"
    ] = Field(
        "adamw_torch",
        description="the 8-bit ones need bitsandbytes; paged needs a GPU",
    )
    seed: int = Field(0, ge=0, description="of adapter and head, row order, dropout")
    gradient_checkpointing: bool = False
    parallel: ParallelConfig = ParallelConfig()
    logging_steps: int = Field(10, gt=0)
    eval_steps: int | None = Field(
        None, gt=0, description="evaluate on validation rows; null: at each epoch's end"
    )
    save_steps: int | None = Field(
        None, gt=0, description="write a checkpoint; null: when evaluated"
    )
    save_total_limit: int = Field(2, gt=0)
    early_stopping: EarlyStoppingConfig | None = None
    callbacks: list[CallbackConfig] = Field(
        default_factory=lambda: [CallbackConfig(name="tensorboard")],
        description="trackers and monitors, each {name, params}",
    )

    @field_validator("max_steps")
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if not steps:
            told = "0 trains nothing: -1 for num_train_epochs, or at least 1"
            raise PydanticCustomError("loralab", told)
        return steps

    def to_training_arguments(self, output_dir: str) -> TrainingArguments:
        """Return the transformers ``TrainingArguments`` of this configuration.

        Args:
            output_dir: The directory in which checkpoints are written.
        """
        from loralab.config.arguments import to_training_arguments

        return to_training_arguments(self, output_dir)


LEAST_IN_TAIL = 5
"""Bootstrap draws beyond each end of an interval, at the least."""


class EvaluationConfig(Strict):
    """What is measured after training, and how sure the intervals are."""

    splits: list[Literal["train", "validation", "test"]] = Field(["test"], min_length=1)
    base: bool = Field(True, description="measure the base by the same code, paired")
    metrics: list[MetricConfig] = Field(
        default_factory=list,
        description="names, or {name, params}; the first is the primary. Empty: the "
        "task's own. For a task that generates they need written answers, which "
        "takes long",
    )
    max_new_tokens: int = Field(256, gt=0, description="of a written answer")
    temperature: float = Field(0.0, ge=0, description="0 is greedy")
    samples: int = Field(1, gt=0, description="answers a row, for pass-at-k")
    per_device_eval_batch_size: int = Field(32, gt=0)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(2000, ge=200, description="bootstrap draws over examples")
    seed: int = Field(0, ge=0, description="of the bootstrap, and of sampled answers")

    @model_validator(mode="after")
    def _draws_reach_the_tails(self) -> EvaluationConfig:
        needed = math.ceil(round(2 * LEAST_IN_TAIL / (1 - self.confidence), 6))
        if self.resamples < needed:
            raise PydanticCustomError(
                "loralab",
                "too few draws for the tails of {c} confidence: at least "
                "evaluation.resamples={n}",
                {"c": f"{self.confidence:g}", "n": needed},
            )
        return self

    @model_validator(mode="after")
    def _samples_differ(self) -> EvaluationConfig:
        if self.samples > 1 and self.temperature == 0:
            raise PydanticCustomError(
                "loralab",
                "samples > 1 needs evaluation.temperature above 0, or all are the same",
            )
        return self


class ExperimentConfig(Strict):
    """A whole run. Two runs with equal configuration are the same run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)
    task: TaskConfig
    model: ModelConfig
    data: DataConfig
    peft: PEFTConfig = Field(default_factory=PEFTConfig)
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="after")
    def _early_stopping_has_rows(self) -> ExperimentConfig:
        own_split = self.data.validation_fraction > 0
        if self.training.early_stopping and not own_split:
            raise PydanticCustomError(
                "loralab",
                "training.early_stopping needs validation rows, and "
                "data.validation_fraction is 0; set it, or early_stopping=null",
            )
        return self

    @model_validator(mode="after")
    def _metrics_fit_the_task(self) -> ExperimentConfig:
        form = registry.get("task", self.task.name).target.form
        for i, metric in enumerate(self.evaluation.metrics):
            judges = registry.get("metric", metric.name).facts["answers"]
            if form not in (judges if isinstance(judges, tuple) else (judges,)):
                raise PydanticCustomError(
                    "loralab",
                    "evaluation.metrics.{i}: {m} judges {j} answers, and those of "
                    "{t} are {f}; choose another metric",
                    {
                        "i": i,
                        "m": metric.name,
                        "j": judges,
                        "t": self.task.name,
                        "f": form,
                    },
                )
        return self

    @property
    def hash(self) -> str:
        """Ten hex digits of the sha256 of everything but the name."""
        content = self.model_dump(mode="json", exclude={"name"})
        if content["model"]["storage"] is None:  # as before there was this key
            del content["model"]["storage"]
        if self.training.parallel.processes == 1:  # as before there was this key
            del content["training"]["parallel"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def run_id(self) -> str:
        """The run directory's name, ``<name>-<hash>``."""
        return f"{self.name}-{self.hash}"
