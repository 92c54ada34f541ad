"""Files that hold many images as numbers: IDX (MNIST's format) and NPZ.

An IDX file: two zero bytes, the type (8: uint8), the number of dimensions, each
dimension as 4 bytes, most significant first; then the numbers. It may be gzipped. Its
header says how much there is to read, and not a byte more is unpacked.
"""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loralab.data.images import encode
from loralab.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST = 64 * 2**30
"""Bytes of an array, unpacked; a file that claims more is refused."""

Row = tuple[dict[str, Any], str, str | None]
"""Columns, origin and split of a row."""

SPLITS = {
    "train": ("train", "x_train", "y_train"),
    "validation": ("val", "x_val", "y_val"),
    "test": ("test", "x_test", "y_test"),
}
"""Split -> the words that arrays of an NPZ are named with: ``train_images`` and
``train_labels``, or Keras' ``x_train`` and ``y_train``."""


def read_idx(file: Path) -> NDArray[np.uint8]:
    """Return the array of an IDX file of uint8.

    Raises:
        DataError: it is none, or not whole.
    """
    packed = file.suffix == ".gz"
    try:
        with gzip.open(file, "rb") if packed else file.open("rb") as handle:
            return _idx(handle, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"broken or cut off: {error}", where=str(file)) from None
    except OSError as error:
        raise DataError("cannot be read", where=str(file), why=str(error)) from None


def _idx(handle: Any, file: Path) -> NDArray[np.uint8]:
    import numpy as np

    head = handle.read(4)
    if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 4:
        raise DataError("no IDX file of bytes", where=str(file))
    sizes = handle.read(4 * head[3])
    shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, len(sizes), 4)]
    wanted = math.prod(shape)
    if wanted > LARGEST:
        raise DataError(f"claims {wanted:,} bytes", where=str(file))
    content = handle.read(wanted)
    if len(shape) != head[3] or len(content) != wanted or handle.read(1):
        raise DataError(
            f"not whole: its header says {shape}, which is not what follows",
            where=str(file),
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def read_npz(file: Path) -> Iterator[tuple[str | None, Any, Any]]:
    """Yield (split, images, labels) of an NPZ file.

    Raises:
        DataError: broken, with pickled objects, or with arrays of other names.
    """
    import numpy as np

    try:
        with zipfile.ZipFile(file) as archive:
            claimed = max((x.file_size for x in archive.infolist()), default=0)
        if claimed > LARGEST:
            raise DataError(f"claims {claimed:,} bytes", where=str(file))
        with np.load(file, allow_pickle=False) as opened:
            for split, images, labels in _pairs(set(opened.files), file):
                yield split, opened[images], np.squeeze(opened[labels])
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"not NPZ: {error}", where=str(file)) from None


def _pairs(names: set[str], file: Path) -> list[tuple[str | None, str, str]]:
    """Return split, images' name and labels' name of each pair of arrays."""
    found: list[tuple[str | None, str, str]] = []
    for split, (word, x, y) in SPLITS.items():
        for images, labels in ((f"{word}_images", f"{word}_labels"), (x, y)):
            if {images, labels} <= names:
                found.append((split, images, labels))
    if not found and {"images", "labels"} <= names:
        found.append((None, "images", "labels"))
    if not found:
        raise DataError(
            f"its arrays {', '.join(sorted(names)) or '(none)'} are not known",
            where=str(file),
            fix="name them images and labels; or train_images, train_labels, "
            "val_images …; or x_train, y_train, x_test, y_test",
        )
    return found


def holds(folder: Path) -> str:
    """Return what lies in a folder, for a message."""
    found = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())[:8]
    return f"it holds {', '.join(found) or 'nothing'}"


def image_rows(
    images: Any, labels: Any, origin: str, split: str | None, names: Any = None
) -> Iterator[Row]:
    """Yield the rows of images [N, H, W] or [N, H, W, C] uint8 and their labels [N]."""
    import numpy as np

    if images.dtype != np.uint8 or images.ndim not in (3, 4) or len(images) == 0:
        raise DataError(
            f"images are {images.dtype} {list(images.shape)}, not uint8 [images, "
            "height, width] or [images, height, width, channels]",
            where=origin,
        )
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        raise DataError(
            f"images have {images.shape[3]} channels, not 1 or 3",
            where=origin,
            fix="let the channels be the last dimension",
        )
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    if len(labels) != len(images) or labels.ndim != 1:
        raise DataError(
            f"{len(images)} images, and {labels.shape} labels", where=origin
        )
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        told = names[label] if names else label
        columns = {"image": {"bytes": encode(image), "path": None}, "label": told}
        yield columns, f"{origin}:{i}", split


def mnist_rows(folder: Path, names: Any = None) -> Iterator[Row]:
    """Yield the rows of a folder with the IDX files of MNIST.

    Raises:
        DataError: files that are missing, or broken.
    """
    for word, split in (("train", "train"), ("t10k", "test"), ("test", "test")):
        images = sorted(folder.glob(f"{word}-images*idx3-ubyte*"))
        for file in images:
            labels = Path(str(file).replace("images", "labels").replace("idx3", "idx1"))
            pair = read_idx(file), read_idx(labels)
            yield from image_rows(*pair, file.name, split, names)
    if not any(folder.glob("train-images*idx3-ubyte*")):
        raise DataError(
            "no train-images-idx3-ubyte", where=str(folder), why=holds(folder)
        )
