"""Image classification by the names of the classes: the head is written, not trained.

Each class is named in sentences, the templates with its name in place of ``{}``; what
a text tower says of them is the head (`loralab.models.zero_shot`). Without training it
classifies already, so the base that an adapter is compared with is the zero-shot model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from loralab.data.tasks.image_classification import (
    ImageClassification,
    ImageClassificationParams,
)
from loralab.errors import DataError, nearest
from loralab.registry import register


class ZeroShotParams(ImageClassificationParams):
    """What a classifier by names is given."""

    templates: list[str] = Field(
        ["a photo of a {}."],
        min_length=1,
        description="sentences with {} for the class; their features are averaged",
    )
    names: dict[str, str] = Field(
        {}, description="class -> what it is called; else its own name, _ read as space"
    )

    @field_validator("templates")
    @classmethod
    def _has_one_place(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"{template!r} needs one {{}}, where the class goes")
        return templates


@register("task", "zero-shot-image-classification", ZeroShotParams)
class ZeroShotImageClassification(ImageClassification):
    """Columns ``image`` and ``label``; the label's name is what is looked for."""

    head = "zero-shot-image-classification"
    params: ZeroShotParams

    def fit(self, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Take the class names from the training rows, and write their prompts.

        Raises:
            DataError: a name for a class that there is not, or two that are called
                alike.
        """
        state = super().fit(splits)
        names = self.params.names
        for label in names:
            if label not in self.labels:
                raise DataError(
                    f"no class {label!r}; {nearest(label, self.labels)}",
                    where=f"task.params.names.{label}",
                )
        called = [names.get(x, x.replace("_", " ")) for x in self.labels]
        if twice := sorted({name for name in called if called.count(name) > 1}):
            raise DataError(
                f"several classes are called {twice[0]!r}",
                where="task.params.names",
                why="the model could not tell them apart",
            )
        prompts = [[t.replace("{}", x) for t in self.params.templates] for x in called]
        return {**state, "prompts": prompts}
