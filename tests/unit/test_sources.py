"""Sources: files, folders, URLs; the hub that does not answer."""

import json
import os
import socket
import subprocess
import sys
import threading
from importlib.util import find_spec

import fsspec
import pytest

from loralab.data.sources.file import FileParams, read
from loralab.errors import DataError


def rows(path, **params):
    return list(read(FileParams(path=str(path), **params)))


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


CSV = "text,label\na,x\n"


@pytest.mark.parametrize(
    "names",
    [
        {"train.csv": "train", "dev.csv": "validation", "test.csv": "test"},
        {
            "train-0.csv": "train",
            "train-1.csv": "train",
            "validation.csv": "validation",
        },
        {"train/a.csv": "train", "test/b.csv": "test"},
        {"a.csv": None, "b.csv": None},
    ],
)
def test_a_folder_gives_the_splits_that_its_names_tell(tmp_path, names):
    for name in names:
        write(tmp_path / name, CSV)
    found = rows(tmp_path)
    by_file = [(row.origin.rpartition("/")[2], row.split) for row in found]
    wanted = {(f"{n.rpartition('/')[2]}:2", split) for n, split in names.items()}
    assert set(by_file) == wanted
    assert len(by_file) == len(names)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["train.csv", "other.csv"], "belongs to no split"),
        (["train.csv", "val.csv"], "may be a split or not"),
        (["test.csv"], "no training rows"),
        (["a.csv", "b.jsonl"], "several kinds"),
        (["notes.md"], "no file of a known ending"),
        (["train/a.csv", "b.csv"], "files beside split folders"),
        (["first/a.csv"], "is no split"),
    ],
)
def test_an_unclear_folder_is_refused_not_guessed(tmp_path, names, says):
    for name in names:
        write(tmp_path / name, CSV)
    with pytest.raises(DataError, match=says):
        rows(tmp_path)


def test_lines_of_a_text_are_rows(tmp_path):
    found = rows(write(tmp_path / "a.txt", "one\n\n two\n"))
    assert [row.columns["text"] for row in found] == ["one", " two"]
    assert found[1].origin.endswith("a.txt:3")


def test_a_list_in_json_is_rows(tmp_path):
    found = rows(write(tmp_path / "a.json", json.dumps([{"text": "a"}, 3])))
    assert found[0].columns == {"text": "a"}
    assert found[1].problem == "not an object"


def test_squad_json_is_one_row_a_question(tmp_path):
    answer = {"text": "Norway", "answer_start": 11}
    asked = [
        {"id": "1", "question": "Where?", "answers": [answer]},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    paragraph = {"context": "Oslo is in Norway.", "qas": asked}
    data = {"data": [{"title": "Oslo", "paragraphs": [paragraph]}]}
    one, two = rows(write(tmp_path / "a.json", json.dumps(data)))
    assert one.columns["answers"] == {"text": ["Norway"], "answer_start": [11]}
    assert two.columns["answers"] == {"text": [], "answer_start": []}
    assert two.columns["context"] == "Oslo is in Norway."


def test_conll_is_one_row_a_sentence(tmp_path):
    text = "-DOCSTART- -X- O\n\nAda NNP B-PER\nsings VB O\n\nOslo NNP B-LOC\n"
    one, two = rows(write(tmp_path / "a.conll", text))
    assert one.columns == {"tokens": ["Ada", "sings"], "tags": ["B-PER", "O"]}
    assert two.columns["tags"] == ["B-LOC"]


def test_a_cell_may_be_long(tmp_path):
    (row,) = rows(write(tmp_path / "a.csv", f"text,label\n{'a' * 200_000},x\n"))
    assert len(row.columns["text"]) == 200_000


def test_parquet_at_a_url(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    with fsspec.open("memory://bucket/rows.parquet", "wb") as handle:
        pq.write_table(pa.table({"text": ["a", "b"], "label": ["x", "y"]}), handle)
    found = rows("memory://bucket/rows.parquet")
    assert [row.columns["text"] for row in found] == ["a", "b"]
    with pytest.raises(DataError, match="no such file"):
        rows("memory://bucket/gone.parquet")


def test_a_protocol_without_its_package_names_the_extra():
    if find_spec("s3fs"):
        pytest.skip("s3fs is installed")
    with pytest.raises(DataError, match=r"loralab\[s3\]"):
        rows("s3://bucket/rows.parquet")


def test_credentials_in_a_url_are_refused_and_not_repeated():
    with pytest.raises(DataError) as caught:
        rows("s3://key:secret@bucket/rows.csv")
    assert "secret" not in str(caught.value)


ASK = """
import sys, time
from loralab import compose
from loralab.data.examples import get_preprocessor
from loralab.data.rows import load_rows
from loralab.errors import DataError
import datasets, huggingface_hub
config = compose("text-classification", ["data=ag-news"])
start = time.perf_counter()
try:
    load_rows(config.data, get_preprocessor(config.task))
except DataError as error:
    print(time.perf_counter() - start)
    print(error)
"""


def ask(tmp_path, **environment):
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
    )
    assert done.returncode == 0, done.stderr
    seconds, _, message = done.stdout.partition("\n")
    return float(seconds), message


def test_a_hub_that_is_not_there_is_told_at_once(tmp_path):
    seconds, message = ask(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert seconds < 10
    assert "the hub cannot be reached" in message
    assert "data=file" in message


def test_a_hub_that_never_answers_is_told_within_ten_seconds(tmp_path):
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept():
        while True:
            try:
                held.append(server.accept())
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    address = f"http://127.0.0.1:{server.getsockname()[1]}"
    seconds, message = ask(tmp_path, HF_ENDPOINT=address)
    server.close()
    assert seconds < 10
    assert "the hub cannot be reached" in message


def test_offline_nothing_is_asked(tmp_path):
    seconds, message = ask(tmp_path, HF_HUB_OFFLINE="1")
    assert seconds < 10
    assert "HF_HUB_OFFLINE" in message


@pytest.mark.parametrize(
    ("name", "delimiter", "says"),
    [("a.csv", ";", "';'"), ("a.csv", "\t", "a tab"), ("a.tsv", ",", "a comma")],
)
def test_another_delimiter_is_told_once(tmp_path, name, delimiter, says):
    lines = [delimiter.join(cells) for cells in (["body", "stars"], *[["a", "1"]] * 9)]
    file = write(tmp_path / name, "\n".join(lines))
    with pytest.raises(DataError, match=f"seem to be separated by {says}"):
        rows(file)


def test_a_single_column_may_hold_the_delimiter_in_quotes(tmp_path):
    (row,) = rows(write(tmp_path / "a.csv", '"text, raw"\n"a; b"\n'))
    assert row.columns == {"text, raw": "a; b"}


@pytest.mark.parametrize("text", ["", "text,label\n"])
def test_a_file_without_rows_is_named(tmp_path, text):
    with pytest.raises(DataError, match=r"none\.csv: no usable row"):
        rows(write(tmp_path / "none.csv", text))
