"""The schema of `study.yaml`: a question, and all that decides its answer beforehand.

question: Does a higher rank pay on spam?
experiment: sms-spam
arms:
rank-8: [peft.params.rank=8]
rank-16: [peft.params.rank=16]
baseline: rank-8
budgets: [tokens, steps]          # ranks differ on purpose, so not `trainable`
metric: cross_entropy
smallest_difference: 0.01
tuning: {grid: {training.learning_rate: [3e-4, 1e-3, 3e-3]}}
controls: {same-again: {of: rank-8, seed_offset: 1000, expect: equal}}
sizes:
smoke: {seeds: 2, overrides: [training.max_steps=3]}
evidence: {seeds: 10}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from loralab.config import ExperimentConfig
from loralab.config.problems import config_errors
from loralab.errors import ConfigError
from loralab.registry import Strict

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
TUNING_SEEDS = 10_000
"""Seeds of tuning begin here: never those of the final runs."""

FEWEST_VALUES = 3
"""With fewer values every best one lies on an edge of its grid."""

Budget = Literal["trainable", "tokens", "steps", "examples"]
Overrides = list[str]


def number(value: Any) -> Any:
    """Return what YAML meant: it reads ``3e-4`` as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


class DataChoice(Strict):
    """One data set that the question is asked on."""

    experiment: str
    overrides: Overrides = Field(default_factory=list)
    seeds: int | None = Field(None, gt=0, description="at most; for what is slow")
    smallest_difference: float | None = Field(
        None, gt=0, description="where it is another than the study's"
    )


class Tuning(Strict):
    """The hyper-parameter policy: the same grid for every arm, judged on validation."""

    grid: dict[str, list[Any]] = Field(min_length=1)
    seeds: int = Field(1, gt=0, description="trials of a point; their mean is judged")
    metric: str = "cross_entropy"

    @field_validator("grid")
    @classmethod
    def _has_an_inside(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        found = {key: [number(one) for one in values] for key, values in grid.items()}
        for key, values in found.items():
            if len(values) < FEWEST_VALUES or len(set(map(str, values))) < len(values):
                raise PydanticCustomError(
                    "loralab",
                    "{k} needs at least three different values, or each is on an edge",
                    {"k": key},
                )
        return found


class Control(Strict):
    """An arm whose outcome is known beforehand, or the study is not to be believed."""

    of: str = Field(description="the arm that it is made of and compared with")
    overrides: Overrides = Field(default_factory=list)
    seed_offset: int = Field(0, ge=0, description="added to its seeds")
    expect: Literal["equal", "worse"] = "equal"

    @model_validator(mode="after")
    def _differs(self) -> Control:
        if not self.overrides and not self.seed_offset:
            raise PydanticCustomError(
                "loralab",
                "the control equals its arm run for run; set seed_offset or overrides",
            )
        return self


class Size(Strict):
    """How large the study is."""

    seeds: int = Field(gt=0)
    overrides: Overrides = Field(default_factory=list)


class StudyConfig(Strict):
    """A study."""

    name: str = Field(pattern=NAME, max_length=48)
    question: str = Field(min_length=1)
    experiment: str | None = Field(None, description="or one in every entry of data")
    data: dict[str, DataChoice] = Field(default_factory=dict)
    overrides: Overrides = Field(default_factory=list, description="of every run")
    arms: dict[str, Overrides] = Field(min_length=1)
    baseline: str | None = None
    metric: str = Field("cross_entropy", description="the primary, on test rows")
    smallest_difference: float = Field(gt=0, description="of interest, in its unit")
    alpha: float = Field(0.05, gt=0, lt=0.5)
    power: float = Field(0.8, gt=0.5, lt=1)
    tuning: Tuning | None = None
    budgets: tuple[Budget, ...] = Field(
        ("trainable", "tokens", "steps"),
        description="must be equal in all arms, within `tolerance`",
    )
    tolerance: float = Field(0.01, ge=0, lt=1)
    controls: dict[str, Control] = Field(default_factory=dict)
    sizes: dict[Literal["smoke", "evidence"], Size]
    pilot: str | None = Field(
        None, description="analysis.json of a study that measured the A/A noise"
    )

    @model_validator(mode="after")
    def _data_are_named(self) -> StudyConfig:
        if bool(self.data) == bool(self.experiment):
            raise PydanticCustomError(
                "loralab", "name one experiment, or data with an experiment each"
            )
        return self

    @model_validator(mode="after")
    def _arms_are_comparable(self) -> StudyConfig:
        if len(self.arms) > 1 and self.baseline not in self.arms:
            raise PydanticCustomError(
                "loralab",
                "several arms need `baseline`, one of: {a}",
                {"a": ", ".join(self.arms)},
            )
        for name, control in self.controls.items():
            if control.of not in self.arms or name in self.arms:
                raise PydanticCustomError(
                    "loralab",
                    "controls.{n}: needs a name of its own, and `of` one of: {a}",
                    {"n": name, "a": ", ".join(self.arms)},
                )
        return self

    @model_validator(mode="after")
    def _seeds_are_apart(self) -> StudyConfig:
        most = max(size.seeds for size in self.sizes.values())
        for name, control in self.controls.items():
            offset = control.seed_offset
            if 0 < offset < most or offset + most > TUNING_SEEDS:
                raise PydanticCustomError(
                    "loralab",
                    "controls.{n}.seed_offset: {o} would share seeds with its arm or "
                    "with tuning; take {m} or more, and less than {t}",
                    {"n": name, "o": offset, "m": most, "t": TUNING_SEEDS - most},
                )
        return self

    @model_validator(mode="after")
    def _tuning_is_not_undone(self) -> StudyConfig:
        tuned = self.tuning.grid if self.tuning else {}
        for arm, (overrides, _) in self.everything.items():
            for text in overrides:
                key = text.partition("=")[0]
                if key in tuned:
                    raise PydanticCustomError(
                        "loralab",
                        "{a} sets {k}, and tuning sets it again; take it out of one",
                        {"a": arm, "k": key},
                    )
        return self

    @property
    def choices(self) -> dict[str, DataChoice]:
        """The data sets; with one experiment, that."""
        if self.experiment:
            return {Path(self.experiment).stem: DataChoice(experiment=self.experiment)}
        return self.data

    @property
    def everything(self) -> dict[str, tuple[Overrides, int]]:
        """Overrides and seed offset of every arm, controls among them."""
        found = {name: (overrides, 0) for name, overrides in self.arms.items()}
        for name, control in self.controls.items():
            overrides = [*self.arms[control.of], *control.overrides]
            found[name] = (overrides, control.seed_offset)
        return found

    def reference(self, arm: str) -> str | None:
        """Return the arm that an arm is compared with."""
        if arm in self.controls:
            return self.controls[arm].of
        return None if arm == self.baseline else self.baseline


def read_study(path: str | Path) -> StudyConfig:
    """Read a study.

    Raises:
        ConfigError: no such file, or no YAML.
        ConfigErrors: every key that is wrong, at once.
    """
    file = Path(path).expanduser()
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            "cannot be read as a study", where=str(path), why=str(error)
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError("a study is a mapping", where=str(path))
    foreign = {*ExperimentConfig.model_fields, "defaults"} - {*StudyConfig.model_fields}
    if foreign & raw.keys() and not {"question", "arms"} & raw.keys():
        raise ConfigError(
            "this is an experiment, not a study",
            where=str(path),
            fix=f"loralab plan {path}; or name it in a study, as its `experiment`",
        )
    raw.setdefault(
        "name", file.stem if file.stem != "study" else file.resolve().parent.name
    )
    try:
        return StudyConfig.model_validate(raw)
    except ValidationError as error:
        raise config_errors(error, raw, str(path), StudyConfig) from None
