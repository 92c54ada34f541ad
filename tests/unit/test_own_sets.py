import json
import re
from collections import Counter, defaultdict
from dataclasses import fields
from itertools import chain

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from loralab.data.embedded import EMBEDDED_SETS, OWN, read_embedded
from loralab.data.leaks import SPLITS
from loralab.data.own.compounds import JOINTS, PAIRS
from loralab.data.own.facts import facts
from loralab.data.own.names import pool
from loralab.data.own.relations import RELATIONS

OURS = ("passages", "facts-qa", "facts-ner")
TYPES = {"PER", "LOC", "ORG", "DATE", "NUM", "OCC"}

seeds = st.integers(0, 2**32)
splits = st.sampled_from(SPLITS)


@pytest.fixture(scope="module")
def articles():
    text = (OWN / "passages.json").read_text(encoding="utf-8")
    return json.loads(text)["data"]


@pytest.fixture(scope="module")
def many():
    return {split: list(facts(400, 0, split)) for split in SPLITS}


def paragraphs(articles):
    return [paragraph for article in articles for paragraph in article["paragraphs"]]


def questions(articles):
    return [one for paragraph in paragraphs(articles) for one in paragraph["qas"]]


def decoded(tags):
    """Runs of tokens of one entity, as (first, last + 1, type)."""
    found = []
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            found.append([i, i + 1, tag[2:]])
        elif tag.startswith("I-"):
            assert found
            assert found[-1][1:] == [i, tag[2:]], "I- continues nothing"
            found[-1][1] = i + 1
    return found


def offsets(context, tokens):
    """Where every token stands; only white space may lie between two."""
    places, end = [], 0
    for token in tokens:
        start = context.index(token, end)
        assert not context[end:start].strip()
        end = start + len(token)
        places.append((start, end))
    assert not context[end:].strip()
    return places


def test_written_answers_stand_in_their_passage(articles):
    for paragraph in paragraphs(articles):
        for question in paragraph["qas"]:
            assert question["is_impossible"] == (not question["answers"])
            for answer in question["answers"]:
                text, start = answer["text"], answer["answer_start"]
                end = start + len(text)
                context = paragraph["context"]
                assert context[start:end] == text == text.strip() != ""
                assert not re.match(r"\w", context[end : end + 1]), text
                assert not re.match(r"\w", context[max(start - 1, 0) : start]), text


def test_there_are_enough_written_questions_and_some_have_no_answer(articles):
    assert len(paragraphs(articles)) >= 44
    found = questions(articles)
    assert len(found) >= 220
    assert 0.2 < sum(one["is_impossible"] for one in found) / len(found) < 0.45
    assert sum(len(one["answers"]) > 1 for one in found) > 30
    for paragraph in paragraphs(articles):
        assert 60 <= len(paragraph["context"].split()) <= 130
        assert len(paragraph["qas"]) >= 5
        assert 0 < sum(one["is_impossible"] for one in paragraph["qas"]) <= 3


def test_nothing_written_stands_twice(articles):
    for values in (
        [one["id"] for one in questions(articles)],
        [one["question"] for one in questions(articles)],
        [one["context"] for one in paragraphs(articles)],
        [one["title"] for one in articles],
    ):
        assert [x for x, count in Counter(values).items() if count > 1] == []


@pytest.mark.parametrize("name", OURS)
def test_our_sets_bring_their_splits_and_need_no_package(name):
    assert EMBEDDED_SETS[name].package is None
    rows = list(read_embedded(name))
    assert {row.split for row in rows} == set(SPLITS)
    inputs = defaultdict(set)
    for row in rows:
        inputs[str(row.columns.get("context", row.columns.get("tokens")))].add(
            row.split
        )
    assert all(len(found) == 1 for found in inputs.values()), "a passage in two splits"
    for split in ("validation", "test"):
        assert sum(row.split == split for row in rows) < 0.25 * len(rows)


@pytest.mark.parametrize("name", ["passages", "facts-qa"])
def test_rows_are_shaped_like_squad_v2(name):
    rows = list(read_embedded(name))
    ids = [row.columns["id"] for row in rows]
    assert len(set(ids)) == len(ids)
    for row in rows:
        assert set(row.columns) == {"id", "title", "context", "question", "answers"}
        answers = row.columns["answers"]
        assert set(answers) == {"text", "answer_start"}
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            assert row.columns["context"][start:].startswith(text)


def test_every_set_of_ours_has_a_preset():
    for name in OURS:
        text = (OWN.parents[1] / f"config/presets/data/{name}.yaml").read_text("utf-8")
        assert text.startswith("# Embedded: ")
        assert yaml.safe_load(text)["source"]["params"] == {"set": name}


def test_the_presets_say_how_many_there_are():
    for name in OURS:
        rows = list(read_embedded(name))
        text = (OWN.parents[1] / f"config/presets/data/{name}.yaml").read_text("utf-8")
        assert text.startswith(f"# Embedded: {len(rows):,} ")


@given(seeds, splits, st.integers(0, 4))
def test_passages_depend_on_seed_split_and_number_alone(seed, split, shorter):
    found = list(facts(5, seed, split))
    assert list(facts(shorter, seed, split)) == found[:shorter]
    assert list(facts(5, seed + 1, split)) != found


@given(seeds, splits)
@settings(deadline=None)
def test_every_generated_span_is_exact(seed, split):
    for passage in facts(4, seed, split):
        row = passage.ner_row()
        places = offsets(passage.context, row["tokens"])
        entities = [
            (places[first][0], places[last - 1][1], label)
            for first, last, label in decoded(row["tags"])
        ]
        assert entities == sorted(passage.spans)
        assert {label for *_, label in entities} <= TYPES
        starts, ends = (set(side) for side in zip(*places, strict=True))
        for question in passage.questions:
            if question.span:
                assert question.span[0] in starts
                assert question.span[1] in ends


@given(seeds, splits)
@settings(deadline=None)
def test_a_question_is_answered_exactly_if_the_passage_tells_it(seed, split):
    for passage in facts(4, seed, split):
        keys = [question.key for question in passage.questions]
        assert 1 <= len(set(keys)) == len(keys) <= 5
        for question in passage.questions:
            _, of_whom, thing = question.key
            assert (question.span is not None) == (question.key in passage.told)
            assert of_whom in question.text
            assert thing in question.text
            if question.span:
                assert of_whom in passage.context


@given(seeds, splits)
@settings(deadline=None)
def test_a_relation_is_told_once_of_a_subject_and_once_of_a_value(seed, split):
    for passage in facts(4, seed, split):
        values = [key[1] for key in passage.told if key[0].startswith("inverse ")]
        assert len(set(values)) == len(values), "a value answers two questions"
        direct = [key[:2] for key in passage.told if not key[0].startswith("inverse ")]
        assert len(set(direct)) == len(direct) == len(values)


@given(seeds, splits)
@settings(deadline=None)
def test_what_is_told_from_the_other_side_is_not_called_unanswerable(seed, split):
    for passage in facts(8, seed, split):
        spouses = {of for name, of, _ in passage.told if name.endswith("married")}
        joined = {
            frozenset((of, to)) for name, of, to in passage.told if name == "distance"
        }
        leaders = {
            of
            for name, of, _ in passage.told
            if name in ("inverse led_by", "inverse founded_by")
        }
        for question in passage.questions:
            name, of_whom, thing = question.key
            if question.span is None:
                assert not (name.endswith("married") and of_whom in spouses)
                assert not (name == "distance" and {of_whom, thing} in joined)
                assert not (name in ("works_for", "works_as") and of_whom in leaders)


@given(seeds, splits)
@settings(deadline=None)
def test_a_passage_has_three_to_six_sentences_and_reads_as_prose(seed, split):
    for passage in facts(4, seed, split):
        text = passage.context
        assert 3 <= len(re.findall(r"\.(?: |$)", text)) <= 6
        assert not re.search(r"[{}]|  | [.,;]|\ba [aeiou]|\ban [^aeiou]", text)
        assert all(one[0].isupper() or one[0].isdigit() for one in text.split(". "))
        for question in passage.questions:
            assert re.fullmatch(r"[A-Z][^{}?]+\?", question.text)


def test_about_a_quarter_of_the_generated_questions_has_no_answer(many):
    found = [one for split in many.values() for p in split for one in p.questions]
    share = sum(one.span is None for one in found) / len(found)
    assert 0.22 < share < 0.32
    per_passage = Counter(len(p.questions) for split in many.values() for p in split)
    assert set(per_passage) <= {3, 4, 5}


def test_most_passages_tell_two_facts_of_one_kind(many):
    def distracts(passage):
        names = Counter(key[0] for key in passage.told)
        return max(names.values()) > 1

    for passages in many.values():
        assert sum(map(distracts, passages)) / len(passages) > 0.6


def test_the_splits_have_no_name_in_common(many):
    words = {
        split: set(chain(*(getattr(pool(split), f.name) for f in fields(pool(split)))))
        for split in SPLITS
    }
    used = {
        split: {
            passage.context[start:end]
            for passage in passages
            for start, end, label in passage.spans
            if label in ("PER", "LOC", "ORG")
        }
        for split, passages in many.items()
    }
    for first, second in (SPLITS[:2], SPLITS[1:], SPLITS[::2]):
        assert not words[first] & words[second]
        assert not used[first] & used[second]
    assert all(len(found) > 400 for found in used.values())


def test_names_are_many():
    sizes = Counter()
    for split in SPLITS:
        for field in fields(pool(split)):
            sizes[field.name] += len(getattr(pool(split), field.name))
    assert sizes["female"] + sizes["male"] >= 150
    assert sizes["surnames"] >= 150
    assert min(sizes["place_stems"], sizes["org_stems"]) >= 40


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no split 'dev'"):
        list(facts(1, 0, "dev"))


def test_there_are_several_phrasings_of_everything():
    sentences = [say for relation in RELATIONS.values() for say in relation.says]
    assert len(set(sentences)) == len(sentences) >= 40
    for relation in RELATIONS.values():
        assert len(relation.says) >= 3
        assert len(relation.asks) >= 3
    for compound in (*PAIRS, *JOINTS):
        assert set(compound.relations) <= set(RELATIONS)
        for say in compound.says:
            assert re.search(r"\{a?v\}", say)
            assert re.search(r"\{a?w\}", say)
            assert ("{m}" in say) == compound.pair
