"""Where images come from, and what is refused on the way."""

import gzip
import io

import numpy as np
import pytest
from PIL import Image

from loralab import get_preprocessor, load_rows
from loralab.config import DataConfig, TaskConfig
from loralab.data.arrays import read_idx
from loralab.errors import ConfigError, DataError

DRAW = np.random.default_rng(0)


def noise(count=None, side=6, channels=3):
    shape = (side, side, channels) if count is None else (count, side, side, channels)
    return DRAW.integers(0, 256, shape, dtype=np.uint8)


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(file, pixels=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(noise() if pixels is None else pixels))


def load(path, source="images", columns=None, **params):
    chosen = {"name": source, "params": {"path": str(path), **params}}
    config = DataConfig(
        source=chosen,
        columns=columns or {},
        validation_fraction=0.25,
        test_fraction=0.25,
    )
    return load_rows(config, get_preprocessor(TaskConfig(name="image-classification")))


def labels(rows):
    return {name: sorted(split["label"]) for name, split in rows.splits.items()}


def test_a_folder_for_each_class(tmp_path):
    for label in ("cat", "dog"):
        for i in range(8):
            write(tmp_path / label / f"{i}.png")
    write(tmp_path / "dog" / "deeper" / "9.PNG")
    write(tmp_path / "dog" / ".hidden.png")
    (tmp_path / "dog" / "readme.txt").write_text("woof")
    rows = load(tmp_path)
    assert rows.report.read == 17
    assert sum(rows.sizes().values()) == 17
    assert set(rows.sizes()) == {"train", "validation", "test"}
    first = rows.splits["train"][0]
    assert first["origin"] == first["image"]["path"]
    assert first["image"]["bytes"] is None, "files stay where they are"
    assert first["size"] == [6, 6]


def test_folders_of_splits(tmp_path):
    for split, count in {"train": 3, "validation": 1, "test": 2}.items():
        for label in "ab":
            for i in range(count):
                write(tmp_path / split / label / f"{i}.png")
    rows = load(tmp_path)
    assert rows.sizes() == {"train": 6, "validation": 2, "test": 4}
    write(tmp_path / "other" / "a" / "0.png")
    with pytest.raises(DataError, match="other/ stands beside folders of splits"):
        load(tmp_path)


def test_the_same_pixels_are_the_same_row_whatever_their_file(tmp_path):
    same, twice = noise(), noise()
    for label in "ab":
        for i in range(3):
            write(tmp_path / "train" / label / f"{i}.png")
        write(tmp_path / "test" / label / "0.png")
    write(tmp_path / "test" / "a" / "leak.png", same)
    Image.fromarray(same).save(tmp_path / "train" / "a" / "leak.bmp")
    write(tmp_path / "train" / "a" / "twice.png", twice)
    Image.fromarray(twice).save(tmp_path / "train" / "a" / "twice.bmp")
    rows = load(tmp_path)
    assert (rows.report.leaks, rows.report.duplicates) == (1, 1)
    kept = rows.splits["train"]
    assert not [x for x in kept["origin"] if "leak" in x]
    assert len([x for x in kept["origin"] if "twice" in x]) == 1


@pytest.mark.parametrize("content", [b"", b"no image", png(noise(side=40))[:300]])
def test_a_broken_image_is_an_error_that_names_the_file(tmp_path, content):
    for label in "ab":
        for i in range(3):
            write(tmp_path / label / f"{i}.png")
    (tmp_path / "b" / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"1 of 7 rows cannot be used\n.*bad\.png"):
        load(tmp_path)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load(tmp_path / "none")
    (tmp_path / "loose.png").write_bytes(b"x")
    with pytest.raises(DataError, match="no folder with a folder") as caught:
        load(tmp_path)
    assert "loose.png" in caught.value.why
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in it"):
        load(tmp_path)
    (tmp_path / "all.zip").write_bytes(b"x")
    with pytest.raises(DataError, match="archive"):
        load(tmp_path / "all.zip")


def idx(array):
    head = bytes([0, 0, 8, array.ndim])
    return head + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def mnist(folder, packed, train=8, test=4):
    folder.mkdir(exist_ok=True)
    for word, count in {"train": train, "t10k": test}.items():
        images, answers = noise(count)[..., 0], np.arange(count, dtype=np.uint8) % 2
        for what, array in {"images-idx3": images, "labels-idx1": answers}.items():
            content = idx(array)
            file = folder / f"{word}-{what}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, packed):
    mnist(tmp_path, packed)
    rows = load(tmp_path)
    assert rows.sizes() == {"train": 6, "validation": 2, "test": 4}
    assert labels(rows)["test"] == ["0", "0", "1", "1"]
    suffix = ".gz" if packed else ""
    assert rows.splits["test"][3]["origin"] == f"t10k-images-idx3-ubyte{suffix}:3"


WRONG = {
    "no idx": (b"\x89PNG....", "no IDX file"),
    "floats": (b"\0\0\x0d\1\0\0\0\1aaaa", "no IDX file"),
    "cut off": (idx(noise(4))[:-1], "not whole"),
    "too long": (idx(noise(4)) + b"x", "not whole"),
    "bomb": (b"\0\0\x08\3" + b"\xff\xff\xff\xff" * 3, "claims"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_idx_file_is_refused(case, packed, tmp_path):
    content, why = WRONG[case]
    file = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(DataError, match=why) as caught:
        read_idx(file)
    assert file.name in caught.value.where


def test_a_gzip_file_that_is_cut_off_or_none_is_refused(tmp_path):
    file = tmp_path / "a.gz"
    for content in (gzip.compress(idx(noise(50)))[:-20], b"plain"):
        file.write_bytes(content)
        with pytest.raises(DataError, match="broken or cut off"):
            read_idx(file)


NAMES = {
    "ours": ("train_images", "train_labels", "test_images", "test_labels"),
    "keras": ("x_train", "y_train", "x_test", "y_test"),
}


@pytest.mark.parametrize("style", NAMES)
@pytest.mark.parametrize("shape", [(6, 6), (6, 6, 1), (6, 6, 3)])
def test_npz_files(tmp_path, style, shape):
    def images(count):
        return DRAW.integers(0, 256, (count, *shape), dtype=np.uint8)

    held = (images(8), np.arange(8) % 2, images(4), np.array([[0], [1], [0], [1]]))
    np.savez(tmp_path / "a.npz", **dict(zip(NAMES[style], held, strict=True)))
    rows = load(tmp_path / "a.npz")
    assert rows.sizes() == {"train": 6, "validation": 2, "test": 4}


def test_a_wrong_npz_file_is_refused(tmp_path):
    file = tmp_path / "a.npz"
    cases = [
        ({"x": noise(3)}, "its arrays x are not known"),
        ({"images": noise(3), "labels": np.arange(2)}, "3 images"),
        ({"images": noise(3).astype(float), "labels": np.arange(3)}, "not uint8"),
        ({"images": noise(3).transpose(0, 3, 1, 2), "labels": np.arange(3)}, "channe"),
        ({"images": np.array([object()]), "labels": np.arange(1)}, "pickle"),
    ]
    for held, why in cases:
        np.savez(file, allow_pickle=True, **held)
        with pytest.raises(DataError, match=why):
            load(file)
    for content in (b"nothing", file.read_bytes()[:-40]):
        file.write_bytes(content)
        with pytest.raises(DataError, match="not NPZ"):
            load(file)


def test_a_table_of_paths_is_read_from_its_own_folder(tmp_path):
    for i in range(8):
        write(tmp_path / "pictures" / f"{i}.png")
    lines = [f"pictures/{i}.png,{'ab'[i % 2]}" for i in range(8)]
    (tmp_path / "all.csv").write_text("\n".join(["file_name,kind", *lines]))
    columns = {"image": "file_name", "label": "kind"}
    rows = load(tmp_path / "all.csv", columns=columns, column="file_name")
    assert sum(rows.sizes().values()) == 8
    (tmp_path / "pictures" / "3.png").unlink()
    with pytest.raises(DataError, match=r"all\.csv:5: .*3\.png: No such file"):
        load(tmp_path / "all.csv", columns=columns, column="file_name")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("source", ["images", "file"])
def test_a_table_of_encoded_images(tmp_path, nested, source):
    import pyarrow as pa
    import pyarrow.parquet as pq

    held = [png(noise()) for _ in range(8)]
    values = [{"bytes": one, "path": "x.png"} for one in held] if nested else held
    table = pa.table({"image": values, "label": ["a", "b"] * 4})
    pq.write_table(table, tmp_path / "a.parquet")
    assert sum(load(tmp_path / "a.parquet", source).sizes().values()) == 8
    values[5] = {"bytes": held[5][:50], "path": "x.png"} if nested else held[5][:50]
    pq.write_table(
        pa.table({"image": values, "label": ["a", "b"] * 4}), tmp_path / "a.parquet"
    )
    with pytest.raises(DataError, match=r"a\.parquet:row 6: .*cut off"):
        load(tmp_path / "a.parquet", source)


def test_params_that_cannot_be_are_refused():
    for params in ({"augment": {"zoom": [0.5, 1.5]}}, {"augment": {"flop": True}}):
        with pytest.raises((ConfigError, ValueError)):
            get_preprocessor(TaskConfig(name="image-classification", params=params))
