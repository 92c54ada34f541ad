"""Image classification: an image, one of several classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from loralab.data.examples import Examples
from loralab.data.images import identify, image_of
from loralab.data.pixels import Augmentation, load_pixels, processing_of
from loralab.data.tasks._classes import Classification, label_of
from loralab.data.tasks._columns import column_of
from loralab.registry import Params, Strict, register


class AugmentationParams(Strict):
    """What is drawn anew for every training image and epoch."""

    flip: bool = Field(False, description="mirror every other time")
    shift: float = Field(
        0.0, ge=0, lt=0.5, description="move by up to this share of a side"
    )
    zoom: tuple[float, float] | None = Field(
        None, description="[from, to]: share of the area that a random part covers"
    )

    @field_validator("zoom")
    @classmethod
    def _is_a_range(cls, zoom: tuple[float, float] | None) -> Any:
        if zoom is not None and not 0 < zoom[0] <= zoom[1] <= 1:
            raise ValueError("write two shares, as [0.5, 1.0]")
        return zoom


class ImageClassificationParams(Params):
    """What an image classifier is given."""

    size: int | None = Field(
        None, gt=0, description="pixels of a side; null: the model's own"
    )
    augment: AugmentationParams = AugmentationParams()


@register("task", "image-classification", ImageClassificationParams)
class ImageClassification(Classification):
    """Columns ``image`` (a path, encoded bytes, or both) and ``label``, a name."""

    head = "image-classification"

    def __init__(self, params: ImageClassificationParams) -> None:
        super().__init__()
        self.params = params

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy first; top-5 where there are more classes than that."""
        more = ("top-k",) if len(self.labels) > 5 else ()
        return ("accuracy", *more, "macro-f1", "ece")

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``image``, its ``pixels`` (their hash), ``size`` and ``label``."""
        image = image_of(column_of(columns, "image"))
        label = label_of(column_of(columns, "label"))
        pixels, size = identify(image)
        return {"image": image, "pixels": pixels, "size": list(size), "label": label}

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return the hash of the pixels."""
        return str(row["pixels"])

    def prepare(self, processor: Any) -> None:
        """Check that the model's processor can give images the wanted size."""
        processing_of(processor, self.params.size)

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return pixels and class indices."""
        index = {label: i for i, label in enumerate(self.labels)}
        augment = Augmentation(**self.params.augment.model_dump())
        processing = processing_of(processor, self.params.size)
        return Examples(
            input_ids=[],
            labels=[index[row["label"]] if "label" in row else 0 for row in rows],
            row=list(range(len(rows))),
            pixels=load_pixels(rows, processing, augment),
        )

    def row_of(self, given: Any) -> dict[str, Any]:
        """Return the row of an image: a path, bytes, pixels, or {image}."""
        named = isinstance(given, Mapping) and "image" in given
        return {"image": image_of(given["image"] if named else given)}
