"""Images of the user's own: folders by class, IDX, NPZ, or a table of paths.

A folder holds a folder for each class, below ``train/``, ``validation/`` and ``test/``
if there are such; or the IDX files of MNIST (``train-images-idx3-ubyte.gz`` …). A table
(any format of the source ``file``) has a column of paths, from the table's folder on,
or of encoded images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from loralab.data.arrays import holds, image_rows, mnist_rows, read_npz
from loralab.data.embedded import RawRow
from loralab.data.images import ENDINGS
from loralab.data.sources.file import SPLIT_NAMES, FileParams
from loralab.data.sources.file import read as read_table
from loralab.errors import DataError
from loralab.registry import Params, register

ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


class ImagesParams(Params):
    """Where the images are."""

    path: str = Field(
        description="a folder with a folder for each class (below train/, validation/, "
        "test/ if there are such), or with MNIST's IDX files; an .npz; or a table with "
        "a column of paths or encoded images; splits that are not there are taken from "
        "train"
    )
    column: str = Field("image", description="of a table: where its images are named")


def _below(folder: Path) -> list[Path]:
    """Return the folders in a folder, hidden ones left out, sorted."""
    found = (p for p in folder.iterdir() if p.is_dir())
    return sorted(p for p in found if not p.name.startswith((".", "_")))


def _classes(folder: Path, split: str | None) -> Iterator[RawRow]:
    """Yield the images of a folder's folders, each a class."""
    classes = _below(folder)
    if not classes:
        raise DataError(
            "no folder with a folder for each class",
            where=str(folder),
            why=holds(folder),
        )
    for one in classes:
        found = False
        for root, folders, files in os.walk(one):
            folders.sort()
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(ENDINGS):
                    found = True
                    file = Path(root) / name
                    image = {"bytes": None, "path": str(file)}
                    yield RawRow({"image": image, "label": one.name}, str(file), split)
        if not found:
            known = " ".join(ENDINGS)
            raise DataError(f"no image in it ({known})", where=str(one))


def _folder(folder: Path) -> Iterator[RawRow]:
    if any("-idx" in p.name for p in folder.iterdir()):
        yield from (RawRow(*row) for row in mnist_rows(folder))
        return
    splits = {p: SPLIT_NAMES.get(p.name) for p in _below(folder)}
    if not any(splits.values()):
        yield from _classes(folder, None)
        return
    for one, split in splits.items():
        if split is None:
            raise DataError(
                f"{one.name}/ stands beside folders of splits",
                where=str(folder),
                why="it may be a class or a split",
                fix="lay it below train/, or call it train, validation or test",
            )
        yield from _classes(one, split)


def _table(path: str, column: str) -> Iterator[RawRow]:
    """Yield a table's rows; relative paths are from its folder on."""
    folder = Path(path).expanduser().parent
    for row in read_table(FileParams(path=path)):
        image = row.columns.get(column)
        if isinstance(image, str) and image.strip():
            row = replace(row, columns={**row.columns, column: str(folder / image)})
        yield row


@register("data source", "images", ImagesParams)
def read(params: ImagesParams) -> Iterator[RawRow]:
    """Yield the images.

    Raises:
        DataError: nothing is there, or its layout is not known.
    """
    path = Path(params.path).expanduser()
    if path.is_dir():
        yield from _folder(path)
    elif not path.exists():
        raise DataError("no such file or folder", where=params.path)
    elif path.suffix.lower() == ".npz":
        for split, images, labels in read_npz(path):
            rows = image_rows(images, labels, path.name, split)
            yield from (RawRow(*row) for row in rows)
    elif path.suffix.lower() in ARCHIVES:
        raise DataError(
            "an archive", where=params.path, fix="unpack it, and name the folder"
        )
    else:
        yield from _table(params.path, params.column)
