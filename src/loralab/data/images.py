"""Images: from encoded bytes to uint8 pixels, safely; and what an image *is*.

An image is known by the sha256 of its pixels, not of its file: the same picture saved
twice, as PNG and as BMP, is a duplicate. What holds pixels already (IDX, NPZ) is handed
on as PGM or PPM, the plainest file formats there are, so that every image goes through
one reader, and one set of checks.

Only the formats of `FORMATS` are tried: Pillow knows dozens, and one of them runs a
PostScript interpreter. Its limit on the number of pixels stays on, as an error.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from loralab.data.packages import cache_dir
from loralab.runs.files import TEMPORARY

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "WEBP", "PPM", "BMP", "GIF", "TIFF")
"""Pillow's names of the formats that are read."""

DECODING_VERSION = 1
"""Raised whenever the same file would give other pixels."""

KNOWN_FROM = 16_384
"""Bytes of a file from which on it is faster to hash than to decode."""

ENDINGS = (
    ".png", ".jpg", ".jpeg", ".webp", ".ppm", ".pgm", ".bmp", ".gif", ".tif", ".tiff",
)  # fmt: skip
"""Of the files of these formats."""


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Return pixels [H, W] or [H, W, 3] uint8 as a PGM or PPM file."""
    height, width = pixels.shape[:2]
    kind = b"P5" if pixels.ndim == 2 else b"P6"
    return b"%s %d %d 255\n" % (kind, width, height) + pixels.tobytes()


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return an encoded image's pixels, upright: [H, W, 1] if it is grey, else RGB.

    Transparency is dropped, 16-bit grey becomes 8-bit, and of an animation the first
    picture counts.

    Raises:
        ValueError: broken, cut off, too large, or of a format that is not read.
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not data:
        raise ValueError("image is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data), formats=FORMATS) as opened:
                image = ImageOps.exif_transpose(opened)
                image.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise ValueError(f"image has more than {limit:,} pixels ({error})") from None
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise ValueError(f"image is broken, or none of {known}") from None
    except Exception as error:  # each format's reader raises its own kinds
        raise ValueError(f"image is broken or cut off: {error}") from None
    if image.mode.startswith("I;16"):
        found = (np.asarray(image) >> 8).astype(np.uint8)
    elif image.mode in ("1", "L", "LA"):
        found = np.asarray(image.convert("L"))
    elif image.mode in ("I", "F"):
        raise ValueError(f"image has {image.mode!r} pixels, of more than 16 bits")
    else:
        found = np.asarray(image.convert("RGB"))
    return found if found.ndim == 3 else found[..., None]


def read(image: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return the pixels of an image column, ``{bytes, path}``.

    Raises:
        ValueError: no such file, or the image cannot be read.
    """
    return _decoded(_content(image), image.get("path"))


def identify(image: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
    """Return what an image is: the hash of its pixels, and its height and width.

    It takes decoding. Of a file that is not small the answer is kept in the cache,
    under the hash of its bytes: a folder of photographs is decoded once, not every time
    its rows are read.

    Raises:
        ValueError: no such file, or the image cannot be read.
    """
    data = _content(image)
    if len(data) < KNOWN_FROM:
        return _identity(_decoded(data, image.get("path")))
    name = hashlib.sha256(data).hexdigest()
    file = cache_dir() / "images" / f"known-{DECODING_VERSION}" / name[:2] / name[2:]
    try:
        pixels, height, width = file.read_text(encoding="ascii").split()
        return pixels, (int(height), int(width))
    except (OSError, ValueError):  # not there, or not whole
        pixels, (height_, width_) = _identity(_decoded(data, image.get("path")))
    put(file, f"{pixels} {height_} {width_}".encode())
    return pixels, (height_, width_)


def put(file: Path, content: bytes) -> None:
    """Write a small file of the cache, atomically.

    It is not synced: there are thousands, and one that is not whole is made again.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{TEMPORARY}{uuid4().hex}")
    temporary.write_bytes(content)
    temporary.replace(file)


def _content(image: Mapping[str, Any]) -> bytes:
    if image.get("bytes") is not None:
        return bytes(image["bytes"])
    try:
        return Path(str(image["path"])).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"image {image['path']}: {error.strerror}") from None


def _decoded(data: bytes, path: str | None) -> NDArray[np.uint8]:
    try:
        return decode(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path else str(error)) from None


def _identity(pixels: NDArray[np.uint8]) -> tuple[str, tuple[int, int]]:
    height, width = pixels.shape[:2]
    return digest(pixels), (height, width)


def digest(pixels: NDArray[np.uint8]) -> str:
    """Return the sha256 of pixels; those of a grey image are those of it as RGB."""
    height, width, channels = pixels.shape
    of = hashlib.sha256(b"%d %d\n" % (height, width))
    of.update((pixels.repeat(3, axis=2) if channels == 1 else pixels).tobytes())
    return of.hexdigest()


def image_of(value: Any) -> dict[str, Any]:
    """Return what stands for an image as the column ``{bytes, path}``.

    Args:
        value: A path, encoded bytes, such a mapping (that of `datasets`), pixels as an
            array, or a Pillow image.

    Raises:
        ValueError: it is none of these.
    """
    import numpy as np

    if isinstance(value, (str, Path)) and str(value).strip():
        return {"bytes": None, "path": str(value)}
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        return {"bytes": value.get("bytes"), "path": value.get("path")}
    if hasattr(value, "convert") and hasattr(value, "getexif"):
        value = np.asarray(value.convert("RGB"))
    if isinstance(value, np.ndarray):
        plain = value[..., 0] if value.shape[2:] == (1,) else value
        grey = plain.ndim == 2
        if value.dtype == np.uint8 and (grey or plain.shape[2:] == (3,)):
            return {"bytes": encode(plain), "path": None}
        raise ValueError(
            f"image is an array of {value.dtype} {list(value.shape)}, not uint8 "
            "[height, width] or [height, width, 3]"
        )
    raise ValueError(f"image is {type(value).__name__}, not a file, bytes or pixels")
