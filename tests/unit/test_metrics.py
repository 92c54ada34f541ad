import logging

import numpy as np
import pytest
import sacrebleu
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from loralab import registry
from loralab.errors import ConfigError, DataError
from loralab.evaluation.metrics.entity_f1 import entities
from loralab.evaluation.metrics.final_answer import final_number
from loralab.evaluation.metrics.macro_f1 import f1_by_class
from loralab.evaluation.metrics.pass_at_k import pass_at_k, program
from loralab.evaluation.scores import Answers

SKLEARN = {
    "accuracy": accuracy_score,
    "macro-f1": lambda true, said: f1_score(true, said, average="macro"),
    "mcc": matthews_corrcoef,
}


def scores(name, answers, **params):
    entry = registry.get("metric", name)
    return entry.target(entry.schema(**params), answers)


def value(name, answers, **params):
    made = scores(name, answers, **params)
    assert made.sums.shape[0] == len(answers.predictions)
    return float(made.value(np.asarray(made.sums.sum(0))))


def text(name, references, predictions, **params):
    return value(name, Answers("text", references, predictions), **params)


def one(name, acceptable, said, **params):
    return text(name, [acceptable], [said], **params)


def test_every_metric_says_what_it_judges_and_which_way_is_better():
    for name in registry.names("metric"):
        facts = registry.get("metric", name).facts
        assert facts["answers"] in ("class", "tags", "text")
        assert facts["better"] == ("lower" if name == "ece" else "higher")
        assert facts.get("needs") in (None, "samples", "probabilities", "ranked")


# class


@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.parametrize("name", sorted(SKLEARN))
@pytest.mark.parametrize("classes", [2, 3, 20])
def test_metrics_of_classes_equal_scikit_learn(name, classes):
    rng = np.random.default_rng(classes)
    for n in (1, 2, 7, 300):  # few rows: classes that are never true or never said
        for right in (0.0, 0.5, 1.0):
            true = rng.integers(classes, size=n)
            other = rng.integers(classes, size=n)
            said = np.where(rng.random(n) < right, true, other)
            ours = value(name, Answers("class", true, said, classes=classes))
            assert ours == pytest.approx(SKLEARN[name](true, said), abs=1e-12)


def test_f1_of_each_class_equals_scikit_learn_and_is_nan_for_absent_classes():
    rng = np.random.default_rng(0)
    true, said = rng.integers(4, size=(2, 90))
    confusion = np.zeros((5, 5))
    np.add.at(confusion, (true, said), 1)
    found = f1_by_class(confusion)
    np.testing.assert_allclose(found[:4], f1_score(true, said, average=None))
    assert np.isnan(found[4])


def test_accuracy_is_told_to_be_a_share_and_f1_is_not():
    answers = Answers("class", [0, 1, 1], [0, 1, 0], classes=2)
    assert scores("accuracy", answers).proportion
    assert not scores("macro-f1", answers).proportion


def test_top_k_counts_rows_whose_class_is_among_the_first_k():
    ranked = [[2, 1, 0], [1, 0, 2], [0, 2, 1]]
    answers = Answers("class", [2, 0, 1], [2, 1, 0], classes=3, ranked=ranked)
    found = [value("top-k", answers, k=k) for k in (1, 2, 3, 10)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert scores("top-k", answers).proportion
    with pytest.raises(ValueError, match="less than or equal to 10"):
        value("top-k", answers, k=11)


def ece(confidence, right, **params):
    said = np.zeros(len(right), int)
    true = np.where(right, 0, 1)
    given = Answers("class", true, said, classes=2, probabilities=np.array(confidence))
    return value("ece", given, **params)


def test_ece_by_hand():
    assert ece([0.9, 0.9], [True, True]) == pytest.approx(0.1)
    assert ece([0.9, 0.9], [True, False]) == pytest.approx(0.4)
    # two bins: |0.6 − 0| and |1.8 − 2| over three rows
    assert ece([0.6, 0.9, 0.9], [False, True, True]) == pytest.approx(0.8 / 3)
    # one bin: |2.4 − 2| over three rows
    assert ece([0.6, 0.9, 0.9], [False, True, True], bins=2) == pytest.approx(0.4 / 3)
    assert ece([1.0, 1.0], [True, True]) == 0
    assert ece([0.0, 0.0], [True, True]) == 1


def test_a_bin_of_ece_holds_its_upper_edge():
    # 0.5 and 0.4 share the bin (0, 0.5]; were 0.5 in the next, it would be 0.45
    assert ece([0.5, 0.4], [True, False], bins=2) == pytest.approx(0.05)


def test_ece_equals_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    rng = np.random.default_rng(0)
    for n in (1, 40, 500):
        logits = torch.from_numpy(rng.normal(size=(n, 4)))
        chances, true = logits.softmax(-1), torch.from_numpy(rng.integers(4, size=n))
        best = chances.max(-1)
        answers = Answers(
            "class",
            true.numpy(),
            best.indices.numpy(),
            classes=4,
            probabilities=best.values.numpy(),
        )
        for bins in (10, 15):
            theirs = float(multiclass_calibration_error(chances, true, 4, bins))
            assert value("ece", answers, bins=bins) == pytest.approx(theirs, abs=1e-6)


# text, as SQuAD 2.0 reads it


@pytest.mark.parametrize(
    ("acceptable", "said", "exact", "f1"),
    [
        (["Paris"], "paris", 1, 1),
        (["the Eiffel Tower"], "Eiffel tower.", 1, 1),
        (["an apple"], "A  apple !", 1, 1),
        (["U.S."], "US", 1, 1),
        (["theatre"], "the atre", 0, 0),  # an article is a whole word
        (["the-cat"], "thecat", 1, 1),  # punctuation goes first, so no article is left
        (["cat on a mat"], "the cat sat", 0, 2 / 5),  # one of 3 and 2 words
        (["cat cat dog"], "cat cat", 0, 4 / 5),  # words are counted
        (["x", "red fox"], "red fox", 1, 1),  # the best of the acceptable ones
        (["red fox", "red"], "red dog", 0, 2 / 3),
        ([], "", 1, 1),  # no answer
        ([], "the", 1, 1),  # of which normalization leaves nothing
        ([], "Paris", 0, 0),
        (["the"], "", 1, 1),  # a reference that says nothing is none
        (["a", "Rome"], "", 0, 0),  # and is dropped beside one that says something
        (["Rome"], "", 0, 0),
        (["É"], "é", 1, 1),
        (["e\u0301"], "é", 0, 0),  # composed and decomposed are not made one
        (["日本"], "日本", 1, 1),
        (["日本"], "日本。", 0, 0),  # only ASCII punctuation goes
        (["«x»"], "x", 0, 0),
        (["STRASSE"], "straße", 0, 0),  # lower case, not case folding
        (["a\u00a0b"], "b", 1, 1),  # a no-break space is a space
    ],
)
def test_exact_match_and_token_f1_are_those_of_squad(acceptable, said, exact, f1):
    assert one("exact-match", acceptable, said) == exact
    assert one("token-f1", acceptable, said) == pytest.approx(f1)


def test_exact_match_is_a_share_and_token_f1_is_a_mean():
    answers = Answers("text", [["a b"], []], ["b", "c"])
    assert scores("exact-match", answers).proportion
    assert not scores("token-f1", answers).proportion
    assert value("exact-match", answers) == 0.5


# tags


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X O", {("X", 0, 1)}),
        ("B-X B-X", {("X", 0, 0), ("X", 1, 1)}),
        ("I-X I-X O I-X", {("X", 0, 1), ("X", 3, 3)}),  # IOB1
        ("I-X B-X I-X", {("X", 0, 0), ("X", 1, 2)}),  # IOB1, two neighbours
        ("B-X I-Y", {("X", 0, 0), ("Y", 1, 1)}),
        ("O I-X", {("X", 1, 1)}),
        ("B-X I-X E-X S-X", {("X", 0, 2), ("X", 3, 3)}),
        ("S-X I-X", {("X", 0, 0), ("X", 1, 1)}),
        ("E-X E-X", {("X", 0, 0), ("X", 1, 1)}),
        ("B-A-B I-A-B", {("A-B", 0, 1)}),
        ("B I O", {("", 0, 1)}),
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_are_those_of_conlleval(tags, expected):
    assert entities(tags.split()) == expected


def test_entity_f1_by_hand():
    true = [["B-X", "I-X", "O", "B-Y"], ["O", "O"]]
    said = [["B-X", "O", "O", "B-Y"], ["B-X", "O"]]
    # 1 right, 2 true, 3 predicted
    assert value("entity-f1", Answers("tags", true, said)) == pytest.approx(2 / 5)
    short = Answers("tags", [["B-X", "O", "B-X"]], [["B-X"]])  # cut off: the rest is O
    assert value("entity-f1", short) == pytest.approx(2 / 3)
    assert value("entity-f1", Answers("tags", [["O"]], [["O"]])) == 0


@pytest.mark.parametrize("tag", ["U-PER", "PER", "b-PER", "", "Outside"])
def test_a_tag_of_another_scheme_is_refused(tag):
    with pytest.raises(DataError, match="neither BIO nor BIOES"):
        entities(["O", tag])


# text by n-grams


@pytest.mark.parametrize(
    ("variant", "f1"), [("rouge1", 6 / 7), ("rouge2", 2 / 5), ("rougeL", 4 / 7)]
)
def test_rouge_by_hand(variant, f1):
    # words 3 and 4, 3 shared; pairs 2 and 3, 1 shared; in order 2
    said, wanted = "Cat sat, mat", "mat: the cat SAT"
    assert one("rouge", [wanted], said, variant=variant) == pytest.approx(f1)
    assert one("rouge", ["x y", wanted], said, variant=variant) == pytest.approx(f1)


def test_rouge_of_nothing():
    assert one("rouge", [], "") == one("rouge", [], " \n") == 1
    assert one("rouge", [], "x") == one("rouge", ["x"], "") == 0
    assert one("rouge", ["ж"], "ж") == 0  # no token: as documented


SENTENCE = "the cat's sat on a mat, Über 3.5 don't x-y É cat mat the ."
WORDS = SENTENCE.split()


def corpus(seed, references):
    rng = np.random.default_rng(seed)
    wanted, said = [], []
    for _ in range(int(rng.integers(1, 8))):
        texts = [
            " ".join(rng.choice(WORDS, rng.integers(1, 15))) for _ in range(references)
        ]
        wanted.append(texts)
        said.append(" ".join(rng.choice(texts[0].split(), rng.integers(0, 13))))
    return wanted, said


@pytest.mark.parametrize("references", [1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_bleu_and_chrf_equal_sacrebleus(seed, references):
    wanted, said = corpus(seed, references)
    streams = [list(x) for x in zip(*wanted, strict=True)]
    for name, theirs, params in [
        ("bleu", sacrebleu.corpus_bleu, {}),
        ("bleu", sacrebleu.corpus_bleu, {"tokenize": "intl", "lowercase": True}),
        ("chrf", sacrebleu.corpus_chrf, {}),
        ("chrf", sacrebleu.corpus_chrf, {"word_order": 2, "beta": 3}),
    ]:
        expected = theirs(said, streams, **params).score
        assert text(name, wanted, said, **params) == pytest.approx(expected, abs=1e-9)


def test_bleu_and_chrf_tell_capitals_apart_unless_told_not_to():
    for name in ("bleu", "chrf"):
        assert one(name, ["A B C D E F"], "a b c d e f") == 0
        same = one(name, ["A B C D E F"], "a b c d e f", lowercase=True)
        assert same == pytest.approx(100)


def test_bleu_of_a_bootstrap_draw_is_that_of_the_drawn_corpus():
    wanted, said = corpus(3, 2)
    made = scores("bleu", Answers("text", wanted, said))
    draws = np.random.default_rng(0).integers(0, 3, size=(6, len(said)))
    for counts, got in zip(draws, made.value(draws @ made.sums), strict=True):
        again = np.repeat(np.arange(len(said)), counts)
        drawn = [[wanted[i] for i in again], [said[i] for i in again]]
        expected = text("bleu", *drawn) if len(again) else 0.0
        assert got == pytest.approx(expected, abs=1e-9)


def test_bleu_and_chrf_take_a_row_without_references_for_an_empty_one(caplog):
    with caplog.at_level(logging.WARNING):
        alone = text("bleu", [["a b c d e"]], ["a b c d e"])
        both = text("bleu", [["a b c d e"], []], ["a b c d e", "x y z"])
        assert both < alone == pytest.approx(100)
        assert text("chrf", [[]], ["x"]) == 0
    assert caplog.records == []


# numbers


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("#### 42", 42),
        ("so 3 * 4 = 12.\n#### 12", 12),
        ("#### 1\nno:\n#### 2", 2),
        ("#### 7 apples in 3 boxes", 7),
        ("She pays $1,234.50.", 1234.5),
        ("it is 1,000,000", 1_000_000),
        ("10, 20, 30", 30),
        ("The answer is -5.", -5),
        ("The answer is −5", -5),
        ("#### -$5", -5),
        ("#### $-5", -5),
        ("10-3", 3),
        ("10 - 3", 3),
        ("- 42", 42),
        ("(8)-2", 2),
        ("x=-2", -2),
        ("5%", 5),
        ("0.50", 0.5),
        (".5", 0.5),
        ("3.", 3),
        ("1.0", 1),
        ("007", 7),
        ("42", 42),
        ("**42**", 42),
        ("\\boxed{42}", 42),
        ("", None),
        ("no number", None),
        ("5 apples ####", None),
    ],
)
def test_the_final_number_of_a_solution(said, number):
    found = final_number(said)
    assert found == (None if number is None else pytest.approx(number, abs=0))
    assert one("final-answer", [f"#### {number or 0}"], said) == (found is not None)


def test_final_answer_compares_numbers_not_texts():
    wanted = ["2 + 2 = 4\n#### 1,000"]
    assert one("final-answer", wanted, "so 1000.00 dollars") == 1
    assert one("final-answer", wanted, "#### 1000.01") == 0
    assert one("final-answer", wanted, "#### 1000 and then 5") == 1
    assert one("final-answer", ["#### 3", "#### 4"], "it is 4") == 1
    tiny = "0.1000000000000000055511151231257827"
    assert one("final-answer", ["#### 0.1"], tiny) == 0  # exact, not to a double
    assert scores("final-answer", Answers("text", [wanted], ["1"])).proportion


def test_a_reference_without_a_number_is_an_error_that_names_the_row():
    with pytest.raises(DataError, match="row 1"):
        text("final-answer", [["#### 1"], ["none"]], ["1", "1"])


# programs

ROW = {
    "prompt": 'import math\n\ndef half(x):\n    """Return half of x."""\n',
    "test": "def check(f):\n    assert f(4) == 2\n    assert math.pi",
    "entry_point": "half",
}


def test_pass_at_k_is_the_chance_that_a_draw_of_k_holds_a_right_one():
    from itertools import combinations

    for n in range(1, 7):
        for passed in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations(range(n), k))
                share = sum(min(draw) < passed for draw in draws) / len(draws)
                assert pass_at_k(n, passed, k) == pytest.approx(share)


@pytest.mark.parametrize(
    ("sample", "right"),
    [
        ("    return x / 2\n", True),
        ("return x / 2", True),
        ("y = x\n    return y / 2", True),
        ("    return x / 2\n\ndef other():\n    oops(", True),
        ("    return x / 2\n\nprint(half(", True),
        ("def half(x):\n    return x / 2", True),
        ("Here it is:\n```python\ndef half(x):\n    return x / 2\n```\nDone.", True),
        ("```\n    return x / 2\n```", True),
        ("    return x", False),
        ("    pass", False),
        ("", False),
        ("    import sys; sys.exit(0)", False),
        ("I cannot do that.", False),
    ],
)
def test_a_sample_is_made_into_a_program(sample, right):
    given = Answers("text", [[]], [""], rows=[ROW], samples=[[sample]])
    assert value("pass-at-k", given, allow_execution=True) == right
    assert program(ROW, sample).endswith("check(half)\n")


def test_pass_at_k_averages_rows_and_keeps_them_in_order():
    right, wrong = "return x / 2", "return x"
    samples = [[right, wrong, wrong, wrong], [wrong] * 4, [right] * 4]
    given = Answers("text", [[]] * 3, [""] * 3, rows=[ROW] * 3, samples=samples)
    made = scores("pass-at-k", given, allow_execution=True, k=2)
    assert made.sums[:, 0] == pytest.approx([0.5, 0, 1])
    assert not made.proportion
    alone = Answers("text", [[]], [""], rows=[ROW], samples=[[right]])
    assert scores("pass-at-k", alone, allow_execution=True).proportion


def test_pass_at_k_runs_nothing_without_consent():
    for params in ({}, {"allow_execution": False}):
        with pytest.raises(ValueError, match="executes code written by a model"):
            registry.get("metric", "pass-at-k").schema(**params)


def test_pass_at_k_needs_k_samples_and_tests():
    given = Answers("text", [[]], [""], rows=[ROW], samples=[["a", "b"]])
    with pytest.raises(ConfigError, match="2 samples, and k is 3"):
        value("pass-at-k", given, allow_execution=True, k=3)
    bare = Answers("text", [[]], [""], rows=[{"prompt": ""}], samples=[["a"]])
    with pytest.raises(DataError, match="has no test, entry_point"):
        value("pass-at-k", bare, allow_execution=True)
