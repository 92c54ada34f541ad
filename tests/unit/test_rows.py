import csv
import json
import random
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loralab.config import DataConfig, TaskConfig, compose
from loralab.data.examples import get_preprocessor
from loralab.data.rows import load_rows, near_lines, report_lines
from loralab.errors import DataError

CLASSIFY = get_preprocessor(TaskConfig(name="text-classification"))
INSTRUCT = get_preprocessor(TaskConfig(name="causal-lm"))
NAMES = ("train", "validation", "test")
WHOLE = {"validation_fraction": 0, "test_fraction": 0}


def numbered(count, start=0):
    return [
        {"text": f"text {i}", "label": "ab"[i % 2]} for i in range(start, start + count)
    ]


def write_table(file, rows, delimiter):
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write(file, rows):
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        write_table(file, rows, "\t" if file.suffix == ".tsv" else ",")
    return file


def load(file, task=CLASSIFY, validation=None, test=None, **config):
    params = {"path": str(file)}
    params |= {"validation_path": str(validation)} if validation else {}
    params |= {"test_path": str(test)} if test else {}
    source = {"name": "file", "params": params}
    return load_rows(DataConfig(source=source, **config), task)


def texts(rows):
    return {name: [row["text"] for row in split] for name, split in rows.splits.items()}


def content(split):
    return [(row["text"], row["label"]) for row in split]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_every_format_gives_the_same_rows(tmp_path, ending):
    rows = [
        {"text": 'a "quoted", b', "label": "x"},
        {"text": "two\nlines\tand a tab", "label": "y"},
        {"text": "ünï → 漢", "label": "x"},
    ]
    found = load(write(tmp_path / f"rows.{ending}", rows), **WHOLE)
    assert content(found.splits["train"]) == [(r["text"], r["label"]) for r in rows]
    assert found.report.read == 3


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_take_the_names_of_the_source(tmp_path, ending):
    rows = [{"text": "not this", "body": f"b{i}", "kind": i} for i in range(3)]
    file = write(tmp_path / f"rows.{ending}", rows)
    found = load(file, columns={"text": "body", "label": "kind"}, **WHOLE)
    assert content(found.splits["train"]) == [("b0", "0"), ("b1", "1"), ("b2", "2")]


def test_columns_may_be_swapped(tmp_path):
    file = write(tmp_path / "rows.csv", [{"text": "x", "label": "a text"}])
    found = load(file, columns={"text": "label", "label": "text"}, **WHOLE)
    assert content(found.splits["train"]) == [("a text", "x")]


def test_a_column_that_is_not_there_shows_the_nearest(tmp_path):
    file = write(tmp_path / "rows.csv", [{"body": "a", "label": "x"}])
    with pytest.raises(DataError, match=r"data\.columns\.text.*nearest: body"):
        load(file, columns={"text": "boddy"})
    with pytest.raises(DataError, match=r"data\.columns\.text=COLUMN"):
        load(file)


def test_dots_and_numbers_lead_into_what_is_nested(tmp_path):
    row = {"q": "who?", "answers": {"text": ["me", "you"]}, "label": "x"}
    file = write(tmp_path / "rows.jsonl", [row])
    found = load(file, columns={"text": "answers.text.1"}, **WHOLE)
    assert content(found.splits["train"]) == [("you", "x")]
    with pytest.raises(DataError, match=r"no column 'answers\.text\.2'"):
        load(file, columns={"text": "answers.text.2"}, **WHOLE)


def test_a_row_that_lacks_a_named_column_is_malformed_like_any_other(tmp_path):
    rows = [{"body": "a", "label": "x"}, {"bodi": "b", "label": "y"}]
    file = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError, match=r"rows\.jsonl:2: no column 'body'"):
        load(file, columns={"text": "body"}, **WHOLE)
    found = load(file, columns={"text": "body"}, malformed="skip", **WHOLE)
    assert found.report.malformed == 1


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na,x\n", encoding="utf-8-sig")
    assert content(load(file, **WHOLE).splits["train"]) == [("a", "x")]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.csv", "text,label\n,x\nb,\nc,y\n", [2, 3]),
        ("a.csv", "text,label\nb\nc,y\nd,y,z\n", [2, 4]),
        ("a.csv", '\ntext,label\n\n"two\nlines",x\n\nb\nc,y\n', [7]),
        ("a.csv", 'text,label\nc,y\n" \r\n ",x\r\nd\n', [3, 5]),
        ("a.tsv", "text\tlabel\nb\nc\ty\n", [2]),
        ("a.jsonl", '{"text": 3, "label": "x"}\n{\n[1]\n{"text": "c"}\n', [1, 2, 3, 4]),
        (
            "a.jsonl",
            '{"text": "c", "label": 1.5}\n\n{"text": "d", "label": []}',
            [1, 3],
        ),
        ("a.jsonl", '{"text": "\\ud800", "label": "x"}\n', [1]),
    ],
)
def test_malformed_rows_are_named_by_file_and_line_or_counted(
    tmp_path, name, text, lines
):
    file = tmp_path / name
    file.write_bytes(text.encode())
    with pytest.raises(DataError) as caught:
        load(file, **WHOLE)
    shown = [x.strip() for x in str(caught.value).splitlines() if f"{file}:" in x]
    assert [x.removeprefix(f"{file}:").split(":")[0] for x in shown] == [
        str(line) for line in lines
    ]
    good = '{"text": "good", "label": "x"}' if name == "a.jsonl" else "good\tx"
    good = good if name != "a.csv" else "good,x"
    file.write_bytes(text.encode().rstrip(b"\n") + f"\n{good}\n".encode())
    found = load(file, malformed="skip", **WHOLE)
    assert found.report.malformed == len(lines)
    assert found.report.read == found.sizes()["train"] + len(lines)
    assert texts(found)["train"][-1] == "good"


def test_the_origin_of_a_row_is_its_first_line(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('text,label\na,x\n\n"b\nb",y\nc,x\n')
    found = load(file, **WHOLE).splits["train"]
    assert [row["origin"] for row in found] == [f"{file}:{line}" for line in (2, 4, 6)]


def test_only_the_first_five_malformed_rows_are_shown(tmp_path):
    rows = [{"text": "", "label": "x"}] * 7 + numbered(1)
    with pytest.raises(DataError, match=r"7 of 8 rows(.|\n)*and 2 more"):
        load(write(tmp_path / "a.csv", rows))


@pytest.mark.parametrize(
    ("name", "bytes_", "says"),
    [
        ("a.csv", b'text,label\na,x\n"b,y\n', r"a\.csv:3: not CSV"),
        ("a.csv", "text,label\nü,x\n".encode("latin-1"), r"a\.csv: not UTF-8"),
        ("a.csv", b"", "empty"),
        ("a.csv", b"text,label\n", "empty"),
        ("a.parquet", b"no parquet", "not Parquet"),
        ("a.xlsx", b"a\tx", r"\.jsonl"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name, bytes_, says):
    (tmp_path / name).write_bytes(bytes_)
    with pytest.raises(DataError, match=says):
        load(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "none.csv")


def test_splits_are_drawn_with_the_configured_sizes(tmp_path):
    file = write(tmp_path / "a.csv", numbered(200))
    found = load(file, validation_fraction=0.1, test_fraction=0.25)
    assert found.sizes() == {"train": 130, "validation": 20, "test": 50}
    everything = [text for split in texts(found).values() for text in split]
    assert sorted(everything) == sorted(row["text"] for row in numbered(200))


def test_splits_do_not_depend_on_the_order_of_rows(tmp_path):
    rows = numbered(100)
    first = texts(load(write(tmp_path / "a.csv", rows)))
    random.Random(1).shuffle(rows)
    second = texts(load(write(tmp_path / "b.csv", rows)))
    assert {k: set(v) for k, v in first.items()} == {
        k: set(v) for k, v in second.items()
    }


def test_a_row_more_moves_few_others(tmp_path):
    sets = []
    for count in (100, 101):
        found = load(write(tmp_path / f"{count}.csv", numbered(count)))
        sets.append(set(texts(found)["test"]))
    assert len(sets[0] ^ sets[1]) <= 2


def test_another_seed_draws_other_splits(tmp_path):
    file = write(tmp_path / "a.csv", numbered(100))
    first, second = (set(texts(load(file, seed=seed))["test"]) for seed in (0, 1))
    assert first != second


def test_equal_inputs_stand_in_one_split(tmp_path):
    rows = [{"text": f"t{i % 40}", "label": "abc"[i // 40]} for i in range(120)]
    found = load(write(tmp_path / "a.csv", rows), test_fraction=0.3)
    sets = [set(split) for split in texts(found).values()]
    assert len(sets) == 3
    assert sum(map(len, sets)) == len(set.union(*sets)) == 40
    assert found.report.conflicts == 80
    assert found.report.leaks == 0


def test_a_pair_is_one_input(tmp_path):
    rows = [{"text": "a", "text_pair": f"p{i}", "label": "x"} for i in range(30)]
    found = load(write(tmp_path / "a.csv", rows))
    assert found.report.conflicts == 0
    assert found.sizes() == {"train": 24, "validation": 3, "test": 3}


def test_splits_of_the_source_are_kept(tmp_path):
    files = [
        write(tmp_path / f"{name}.csv", numbered(10, 10 * at))
        for at, name in enumerate(NAMES)
    ]
    found = load(*files[:1], validation=files[1], test=files[2])
    for at, name in enumerate(NAMES):
        assert content(found.splits[name]) == [
            (row["text"], row["label"]) for row in numbered(10, 10 * at)
        ]


def test_only_the_missing_split_is_drawn(tmp_path):
    train = write(tmp_path / "train.csv", numbered(20))
    test = write(tmp_path / "test.csv", numbered(5, 50))
    found = load(train, test=test, validation_fraction=0.1, test_fraction=0.5)
    assert found.sizes() == {"train": 18, "validation": 2, "test": 5}


def repeated(folder):
    rows = numbered(6)
    return write(folder / "a.csv", [*rows, rows[0], rows[3], rows[0]])


def test_duplicates_are_dropped_and_counted(tmp_path):
    found = load(repeated(tmp_path), **WHOLE)
    assert texts(found)["train"] == [row["text"] for row in numbered(6)]
    assert (found.report.read, found.report.duplicates) == (9, 3)
    assert "3 duplicate rows dropped" in report_lines(found, "drop")


def test_what_a_reader_must_know_is_told_and_recorded(tmp_path):
    found = load(repeated(tmp_path), **WHOLE)
    assert "caution" not in found.record()
    params = compose("image-classification", ["data=tiny-imagenet"]).data.source.params
    warned = replace(found, caution=params["caution"])
    assert "part of ImageNet" in report_lines(warned, "drop")[-1]
    assert "part of ImageNet" in warned.record()["caution"]


def test_duplicates_may_be_kept_but_are_counted(tmp_path):
    found = load(repeated(tmp_path), duplicates="keep", **WHOLE)
    assert found.sizes() == {"train": 9}
    assert found.report.duplicates == 3
    assert "3 duplicate rows KEPT" in report_lines(found, "keep")


def test_duplicates_may_be_an_error_that_names_both(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv:8: repeats .*a\.csv:2"):
        load(repeated(tmp_path), duplicates="error", **WHOLE)


def test_an_input_with_two_answers_is_no_duplicate(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "a", "label": "y"}]
    found = load(write(tmp_path / "a.csv", rows), duplicates="error", **WHOLE)
    assert found.sizes() == {"train": 2}
    assert found.report.conflicts == 1


def leaking(folder):
    train = [*numbered(10), {"text": "text 51", "label": "other"}]
    validation = [*numbered(5, 30), numbered(1, 50)[0], numbered(1, 3)[0]]
    return {
        "file": write(folder / "train.csv", train),
        "validation": write(folder / "validation.csv", validation),
        "test": write(folder / "test.csv", numbered(5, 50)),
    }


def test_leaks_are_dropped_from_the_earlier_split(tmp_path):
    found = load(**leaking(tmp_path))
    assert found.sizes() == {"train": 9, "validation": 6, "test": 5}
    assert found.report.leaks == 3
    sets = [set(split) for split in texts(found).values()]
    assert sum(map(len, sets)) == len(set.union(*sets))


def test_leaks_may_be_kept_but_are_counted(tmp_path):
    found = load(**leaking(tmp_path), duplicates="keep")
    assert found.sizes() == {"train": 11, "validation": 7, "test": 5}
    assert found.report.leaks == 3


def test_leaks_may_be_an_error_that_names_both(tmp_path):
    says = r"validation\.csv:7: repeats .*test\.csv:2 of a later split"
    with pytest.raises(DataError, match=says):
        load(**leaking(tmp_path), duplicates="error")


def near(folder, texts):
    rows = [{"text": text, "label": "x"} for text in texts]
    file = write(folder / "near.jsonl", rows)
    train = write(folder / "train.jsonl", [{"text": "Anger is UGLY.", "label": "x"}])
    return load(train, validation=file, test=file, duplicates="keep")


def test_rows_that_differ_in_case_or_spaces_only_are_kept_and_told(tmp_path):
    found = near(tmp_path, ["Anger is  ugly. ", "anger\nis ugly.", "Angeris ugly."])
    assert found.sizes() == {"train": 1, "validation": 3, "test": 3}
    assert found.record()["report"]["near"] == {"validation": 2, "test": 2}
    (line,) = near_lines(found)
    assert "2 of 3 validation rows and 2 of 3 test rows differ from a train" in line


def test_an_input_that_is_the_same_is_no_near_one(tmp_path):
    found = near(tmp_path, ["Anger is UGLY.", "another"])
    assert found.report.near == {} and near_lines(found) == []


def test_the_parts_of_an_input_are_folded_apart(tmp_path):
    train = [{"text": "A b", "text_pair": "c", "label": "x"}]
    test = [
        {"text": "a", "text_pair": "b C", "label": "x"},
        {"text": "a B", "text_pair": "C ", "label": "x"},
    ]
    files = [write(tmp_path / f"{k}.jsonl", v) for k, v in (("a", train), ("b", test))]
    found = load(files[0], test=files[1], validation_fraction=0)
    assert found.report.near == {"test": 1}
    assert near_lines(found)[0].startswith("1 of 2 test rows differs from")


def test_a_training_split_that_leaks_away_is_refused(tmp_path):
    file = write(tmp_path / "a.csv", numbered(5))
    with pytest.raises(DataError, match="no training row"):
        load(file, test=write(tmp_path / "b.csv", numbered(5)))


def test_the_fingerprint_is_of_the_content_and_not_of_the_path(tmp_path):
    rows = numbered(20)
    (tmp_path / "elsewhere").mkdir()
    first = load(write(tmp_path / "a.csv", rows)).fingerprint
    assert load(write(tmp_path / "elsewhere" / "b.jsonl", rows)).fingerprint == first
    rows[7] = {**rows[7], "text": "text 7 "}
    assert load(write(tmp_path / "c.csv", rows)).fingerprint != first
    rows[7] = {"text": "text 7", "label": "c"}
    assert load(write(tmp_path / "c.csv", rows)).fingerprint != first


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"test_fraction": 0.2}, {"max_rows": {"train": 9}}]
)
def test_the_fingerprint_is_of_the_splits(tmp_path, change):
    file = write(tmp_path / "a.csv", numbered(20))
    assert load(file, **change).fingerprint != load(file).fingerprint


def test_max_rows_keeps_the_same_rows_whatever_their_order(tmp_path):
    rows = numbered(100)
    limits = {"train": 20, "validation": 3}
    first = load(write(tmp_path / "a.csv", rows), max_rows=limits)
    assert first.sizes() == {"train": 20, "validation": 3, "test": 10}
    again = load(tmp_path / "a.csv", max_rows=limits)
    assert again.fingerprint == first.fingerprint
    shuffled = write(tmp_path / "b.csv", rows[::-1])
    second = texts(load(shuffled, max_rows=limits))
    assert {k: set(v) for k, v in second.items()} == {
        k: set(v) for k, v in texts(first).items()
    }


def test_more_rows_contain_fewer_rows(tmp_path):
    file = write(tmp_path / "a.csv", numbered(100))
    few, many = (
        texts(load(file, max_rows={"train": limit}))["train"] for limit in (10, 30)
    )
    assert set(few) < set(many)
    assert load(file, max_rows={"train": 1000}).sizes()["train"] == 80


@pytest.mark.parametrize(
    ("row", "asked", "answered"),
    [
        ({"instruction": "i", "input": "x", "output": "o"}, "i\n\nx", "o"),
        ({"instruction": "i", "input": "", "output": "o"}, "i", "o"),
        ({"instruction": "i", "context": "c", "response": "r"}, "i\n\nc", "r"),
        (
            {
                "messages": [
                    {"role": "user", "content": "u"},
                    {"role": "assistant", "content": "a"},
                ]
            },
            "u",
            "a",
        ),
    ],
)
def test_instruction_rows_of_every_shape_become_messages(
    tmp_path, row, asked, answered
):
    found = load(write(tmp_path / "a.jsonl", [row]), INSTRUCT, **WHOLE)
    (kept,) = found.splits["train"]
    assert kept["messages"] == [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": answered},
    ]


def test_the_answer_is_no_part_of_an_instructions_input(tmp_path):
    rows = [
        {"instruction": f"i{i % 20}", "input": None, "output": f"o{i}"}
        for i in range(40)
    ]
    found = load(write(tmp_path / "a.jsonl", rows), INSTRUCT, test_fraction=0.3)
    asked = [
        {row["messages"][0]["content"] for row in split}
        for split in found.splits.values()
    ]
    assert sum(map(len, asked)) == len(set.union(*asked)) == 20
    assert found.report.conflicts == 20


def dialogue(number, turns):
    said = []
    for turn in range(turns):
        said.append({"role": "user", "content": f"u{number}.{turn}"})
        said.append({"role": "assistant", "content": f"a{number}.{turn}"})
    return {"messages": said}


def turn_by_turn(folder):
    rows = [dialogue(n, turns) for n in range(20) for turns in (1, 2, 3)]
    return write(folder / "turns.jsonl", rows)


def answered(split):
    """What stands before each response of its rows, and before the last one only."""
    every, last = set(), set()
    for row in split:
        said = [message["content"] for message in row["messages"]]
        every |= {tuple(said[:i]) for i in range(1, len(said), 2)}
        last.add(tuple(said[:-1]))
    return every, last


def test_no_earlier_turn_of_a_row_answers_a_row_of_a_later_split(tmp_path):
    found = load(turn_by_turn(tmp_path), INSTRUCT, test_fraction=0.2)
    train, validation, test = (answered(found.splits[name]) for name in NAMES)
    assert not train[0] & (validation[1] | test[1])
    assert not validation[0] & test[1]
    sizes, leaks = found.sizes(), found.report.leaks
    assert sizes["test"] == 12
    assert leaks == found.report.earlier_turns == 60 - sum(sizes.values()) > 0
    lines = report_lines(found, "drop")
    assert f"{leaks} of these answer it in an earlier turn" in lines[-1]


def test_earlier_turns_may_be_kept_but_are_counted_or_be_an_error(tmp_path):
    file = turn_by_turn(tmp_path)
    dropped = load(file, INSTRUCT)
    kept = load(file, INSTRUCT, duplicates="keep")
    assert sum(kept.sizes().values()) == 60
    assert kept.report == dropped.report
    with pytest.raises(DataError, match=r"answers .*:\d+ of a later split"):
        load(file, INSTRUCT, duplicates="error")


def test_earlier_turns_are_looked_for_in_splits_of_the_source(tmp_path):
    rows = [dialogue(0, 3), dialogue(1, 2), dialogue(2, 1), dialogue(3, 2)]
    train = write(tmp_path / "train.jsonl", rows)
    test = write(tmp_path / "test.jsonl", [dialogue(0, 2), dialogue(2, 1)])
    found = load(train, INSTRUCT, test=test, validation_fraction=0)
    assert found.sizes() == {"train": 2, "test": 2}
    assert (found.report.leaks, found.report.earlier_turns) == (2, 1)
