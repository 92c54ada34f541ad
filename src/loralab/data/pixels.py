"""Pixels on their way into a model: geometry, augmentation, normalisation.

    x = (scale · pixels − mean) / std,    pixels = crop(resize(augment(stored)))

Geometry and normalisation are those of the model's own image processor, bit for bit
those of its Pillow version, without torchvision. Augmentation is a function of (seed,
epoch, example) alone: the same after a resume, whatever the batch.

An image is decoded once. Where all are small and of one size they are held as they are,
and resized in the batch (32 × 32 → 112 × 112 is a twelfth of the memory, and takes
0.1 ms); otherwise they are resized at once and kept as uint8 in the cache, a file an
image under the hash of its pixels, which batches map into memory.

Shape suffixes: B batch, H height, W width, C channels (1 or 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.data.images import digest, put, read
from loralab.data.packages import cache_dir
from loralab.errors import DataError, ModelError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Draw = tuple[int, int]
"""Seed and epoch, from which augmentation is drawn."""


@dataclass(frozen=True)
class Processing:
    """What a model's image processor does.

    Attributes:
        resize: (height, width), or the shorter side; None: left as it is.
        crop: (height, width) of the middle, or None.
        resample: Pillow's number of the filter.
        scale: Of pixels; 1/255, or 1.
        mean: Of the channels, after the scale.
        std: Of the channels.
        patch: Side of a patch, in pixels.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None
    resample: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int

    @property
    def size(self) -> tuple[int, int]:
        """What the model sees: (height, width)."""
        assert self.crop is not None or isinstance(self.resize, tuple)
        return self.crop or self.resize  # type: ignore[return-value]

    @property
    def tokens(self) -> int:
        """Patches of an image, and the class token."""
        height, width = self.size
        return (height // self.patch) * (width // self.patch) + 1

    def fit(self, pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image at the model's size, uint8."""
        return _cropped(_resized(pixels_HWC, self.resize, self.resample), self.crop)

    def normalise(self, pixels_BHWC: NDArray[np.uint8]) -> torch.Tensor:
        """Return what the model is given, [B, 3, H, W] fp32."""
        import torch

        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        found = torch.from_numpy(pixels_BHWC).float()  # the channels stay last
        return found.mul_(self.scale / std).sub_(mean / std).permute(0, 3, 1, 2)


def processing_of(processor: Any, size: int | None = None) -> Processing:
    """Return what an image processor of transformers does.

    Args:
        processor: With ``patch_size``, which `load_base` adds.
        size: Another side of the square that the model sees; the ratio of resize and
            crop is kept.

    Raises:
        ModelError: it does more than resize, crop, rescale and normalise; or the size
            is no multiple of the patch.
    """
    resize = _size(processor.size) if processor.do_resize else None
    crop = _size(processor.crop_size) if processor.do_center_crop else None
    if not isinstance(crop, tuple):
        crop = None
    if crop is None and not isinstance(resize, tuple):
        raise ModelError(
            "the image processor does not give all images one size",
            where=type(processor).__name__,
            fix="give its configuration a size of height and width, or a crop_size",
        )
    if size is not None:
        if crop is not None and resize is not None:
            resize = _times(resize, size / crop[0])
        elif resize is not None:
            resize = (size, size)
        crop = (size, size) if crop is not None else None
    found = Processing(
        resize=resize,
        crop=crop,
        resample=int(processor.resample if processor.resample is not None else 2),
        scale=float(processor.rescale_factor) if processor.do_rescale else 1.0,
        mean=tuple(processor.image_mean) if processor.do_normalize else (0.0,) * 3,
        std=tuple(processor.image_std) if processor.do_normalize else (1.0,) * 3,
        patch=processor.patch_size,
    )
    if any(side % found.patch for side in found.size):
        raise ModelError(
            f"{found.size[0]} x {found.size[1]} pixels are no whole patches of "
            f"{found.patch}",
            where="task.params.size",
            fix=f"write {max(1, round(found.size[0] / found.patch)) * found.patch}",
        )
    return found


def _size(told: Any) -> tuple[int, int] | int | None:
    """Return (height, width), or the shorter side."""
    given = {k: v for k, v in dict(told or {}).items() if v is not None}
    if {"height", "width"} <= set(given):
        return int(given["height"]), int(given["width"])
    if set(given) == {"shortest_edge"}:
        return int(given["shortest_edge"])
    raise ModelError(f"the image processor's size {given} is not known")


def _times(resize: tuple[int, int] | int, by: float) -> tuple[int, int] | int:
    if isinstance(resize, int):
        return round(resize * by)
    return round(resize[0] * by), round(resize[1] * by)


def _resized(
    pixels_HWC: NDArray[np.uint8], to: tuple[int, int] | int | None, resample: int
) -> NDArray[np.uint8]:
    """Return an image resized by Pillow."""
    import numpy as np
    from PIL import Image

    height, width = pixels_HWC.shape[:2]
    if isinstance(to, int):  # the shorter side; the longer one keeps the ratio
        short, long = min(height, width), max(height, width)
        longer = int(to * long / short)
        to = (to, longer) if height <= width else (longer, to)
    if to is None or to == (height, width):
        return pixels_HWC
    grey = pixels_HWC.shape[2] == 1
    image = Image.fromarray(pixels_HWC[..., 0] if grey else pixels_HWC)
    found = np.asarray(image.resize((to[1], to[0]), resample))
    return found[..., None] if grey else found


def _cropped(
    pixels_HWC: NDArray[np.uint8], to: tuple[int, int] | None
) -> NDArray[np.uint8]:
    """Return the middle of an image; what it lacks is black."""
    import numpy as np

    if to is None:
        return pixels_HWC
    height, width = pixels_HWC.shape[:2]
    rows, columns = max(0, to[0] - height), max(0, to[1] - width)
    if rows or columns:
        top, left = -(-rows // 2), -(-columns // 2)
        around = ((top, rows - top), (left, columns - left), (0, 0))
        pixels_HWC = np.pad(pixels_HWC, around)
        height, width = pixels_HWC.shape[:2]
    top, left = (height - to[0]) // 2, (width - to[1]) // 2
    return pixels_HWC[top : top + to[0], left : left + to[1]]


@dataclass(frozen=True)
class Augmentation:
    """What is drawn anew for every image and epoch.

    Attributes:
        flip: Mirrored, every other time.
        shift: Moved by up to this share of a side; what comes in is black.
        zoom: Shares of the area, from … to, that a random part covers; it is stretched
            to the whole. None: no zoom.
    """

    flip: bool = False
    shift: float = 0.0
    zoom: tuple[float, float] | None = None

    def __call__(
        self, pixels_HWC: NDArray[np.uint8], draw: np.random.Generator
    ) -> NDArray[np.uint8]:
        """Return the image, augmented, of the same size (under `zoom` smaller)."""
        import numpy as np

        found = pixels_HWC
        if self.zoom is not None:
            found = _part(found, self.zoom, draw)
        if self.shift:
            height, width = found.shape[:2]
            up, aside = round(self.shift * height), round(self.shift * width)
            padded = np.pad(found, ((up, up), (aside, aside), (0, 0)))
            top, left = draw.integers(2 * up + 1), draw.integers(2 * aside + 1)
            found = padded[top : top + height, left : left + width]
        if self.flip and draw.random() < 0.5:
            found = found[:, ::-1]
        return np.ascontiguousarray(found)


def _part(
    pixels_HWC: NDArray[np.uint8], shares: tuple[float, float], draw: Any
) -> NDArray[np.uint8]:
    """Return a random part: its area uniform, its shape from 3:4 to 4:3 (log-uniform).

    As Szegedy et al. 2014 (Inception): the sides are cut to those of the image.
    """
    import math

    height, width = pixels_HWC.shape[:2]
    area = height * width * draw.uniform(*shares)
    shape = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
    w = max(1, min(width, round(math.sqrt(area * shape))))
    h = max(1, min(height, round(math.sqrt(area / shape))))
    top, left = draw.integers(height - h + 1), draw.integers(width - w + 1)
    return pixels_HWC[top : top + h, left : left + w]


class Kept(Sequence[Any]):
    """Images at the model's size, each a file of the cache that is mapped when read."""

    def __init__(self, files: Sequence[Path], shape: tuple[int, int]) -> None:
        self._files, self._shape = files, shape

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: Any) -> Any:
        import numpy as np

        return np.memmap(self._files[i], np.uint8, "r", shape=(*self._shape, 3))


@dataclass(frozen=True)
class Pixels:
    """The images of examples.

    Attributes:
        images: Of each example, uint8 [H, W, C].
        fitted: They are of the model's size; else they are made so in the batch.
        processing: How they become what the model is given.
        augmentation: What is drawn for training.
    """

    images: Sequence[NDArray[np.uint8]]
    fitted: bool
    processing: Processing
    augmentation: Augmentation = Augmentation()

    @cached_property
    def tokens(self) -> int:
        """Tokens of each image: its patches, and the class token."""
        return self.processing.tokens

    def batch(self, chosen: Sequence[int], draw: Draw | None) -> torch.Tensor:
        """Return what the model is given, [B, 3, H, W] fp32.

        Args:
            chosen: Which examples.
            draw: Seed and epoch of the augmentation; None: as they are.
        """
        import numpy as np

        return self.processing.normalise(np.stack([self._one(i, draw) for i in chosen]))

    def _one(self, i: int, draw: Draw | None) -> NDArray[np.uint8]:
        """Return an example's image as RGB of the model's size."""
        import numpy as np

        found: NDArray[np.uint8] = np.asarray(self.images[i])
        augments = draw is not None and self.augmentation != Augmentation()
        if augments and draw is not None:
            found = self.augmentation(found, np.random.default_rng([*draw, i]))
        if augments and self.augmentation.zoom is not None:
            found = _resized(found, self.processing.size, self.processing.resample)
        elif not self.fitted:
            found = self.processing.fit(found)
        return found if found.shape[2] == 3 else found.repeat(3, axis=2)


def load_pixels(
    rows: Sequence[Mapping[str, Any]],
    processing: Processing,
    augmentation: Augmentation,
) -> Pixels:
    """Return the images of rows, from the cache where they were decoded before.

    Args:
        rows: With ``image``; those of a data set with ``pixels``, their hash, and
            ``size`` as well.
        processing: Of the model.
        augmentation: Of the task.

    Raises:
        DataError: an image cannot be read, or is not the one that was checked.
    """
    if any("pixels" not in row for row in rows):  # asked now, and not again
        asked = [processing.fit(_read(row)) for row in rows]
        return Pixels(asked, True, processing, augmentation)
    height, width = processing.size
    sizes = {tuple(row["size"]) for row in rows}
    if len(sizes) == 1 and all(h * w <= height * width for h, w in sizes):
        return Pixels([_read(row) for row in rows], False, processing, augmentation)
    geometry = repr((processing.resize, processing.crop, processing.resample))
    name = hashlib.sha256(geometry.encode()).hexdigest()[:16]
    folder = cache_dir() / "images" / name
    files = [_kept(row, processing, folder) for row in rows]
    return Pixels(Kept(files, processing.size), True, processing, augmentation)


def _read(row: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return a row's image, decoded; it must be the one that was checked."""
    where = str(row.get("origin", ""))
    try:
        found = read(row["image"])
    except ValueError as error:
        raise DataError(str(error), where=where) from None
    if "pixels" in row and digest(found) != row["pixels"]:
        raise DataError(
            "the image has changed since it was checked",
            where=where,
            fix="start again; and let nothing write into the data meanwhile",
        )
    return found


def _kept(row: Mapping[str, Any], processing: Processing, folder: Path) -> Path:
    """Return the file of a row's image at the model's size, made at first."""
    height, width = processing.size
    file = folder / f"{row['pixels']}.rgb"
    if not (file.is_file() and file.stat().st_size == height * width * 3):
        pixels_HWC = processing.fit(_read(row))
        if pixels_HWC.shape[2] == 1:
            pixels_HWC = pixels_HWC.repeat(3, axis=2)
        put(file, pixels_HWC.tobytes())
    return file
