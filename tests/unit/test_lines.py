"""One text a line: a line feed ends one, and no line is left out."""

import io
import json

import pytest
from tests.cli import loralab

from loralab.cli.infer import _inputs
from loralab.cli.lines import lines_of, read_lines

WITHIN = "a\u2028b\u2029c\x85d\x0ce\x0bf\x1cg"


def test_only_a_line_feed_ends_a_line(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_bytes(f"\ufeff{WITHIN}\r\nlast\rof all\n\n".encode())
    assert read_lines(file) == [WITHIN, "last\rof all"]
    assert lines_of("") == []


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl", ""])
def test_a_text_is_one_input_whatever_stands_in_it(tmp_path, monkeypatch, name):
    wanted = [{"text": WITHIN}, {"text": "b"}]
    texts = [row["text"] for row in wanted]
    lines = texts
    if name.endswith(".jsonl"):
        lines = [json.dumps(row, ensure_ascii=False) for row in wanted]
    content = "\n".join(lines) + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(content))
    file = tmp_path / name if name else None
    if file:
        file.write_text(content, encoding="utf-8")
    assert _inputs(None, file, None) == (wanted if "jsonl" in name else texts)


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl"])
def test_a_blank_line_is_refused_with_its_number(tmp_path, name):
    file = tmp_path / name
    file.write_text('{"text": "a"}\n \n{"text": "b"}\n', encoding="utf-8")
    assert f"{name}:2: blank" in loralab("infer", "a-run", "--file", file).err


def test_a_blank_text_is_refused_with_its_number(monkeypatch):
    assert "text 2: blank" in loralab("infer", "a-run", "a", "").err
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nb\n"))
    assert "standard input:2: blank" in loralab("infer", "a-run").err
