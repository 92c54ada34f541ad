"""Extractive question answering: the answer is a span of the context, or there is none.

The question and the context are read together; the model gives every token a logit as
the first and as the last of the answer (Devlin et al. 2018, sec. 4.2-4.3). A context
longer than ``max_length`` becomes windows that overlap by ``doc_stride`` tokens. In a
window that does not hold the answer, position 0 is the right one, and stands for "no
answer here"::

    score(span)      = first[s] + last[e],  s <= e,  both in the context
    score(no answer) = first[0] + last[0],  the least of the windows

A row has no answer when score(no answer) − best score(span) > ``no_answer_threshold``,
and only if the training rows had such questions (SQuAD v2; in v1 there are none).

Shape suffixes: T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from loralab.data.examples import Answer, Examples
from loralab.data.tasks._classes import softmax
from loralab.data.tasks._columns import column_of, text_of
from loralab.data.tasks._processor import require_padding
from loralab.errors import DataError, ModelError
from loralab.registry import Params, register

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class QuestionAnsweringParams(Params):
    """How questions and contexts become tokens, and spans answers."""

    max_length: int = Field(384, gt=16, description="tokens of question and window")
    doc_stride: int = Field(128, gt=0, description="tokens that two windows share")
    max_answer_tokens: int = Field(30, gt=0)
    no_answer_threshold: float = Field(
        0.0, description="how far 'no answer' must score above the best span"
    )

    @model_validator(mode="after")
    def _windows_advance(self) -> QuestionAnsweringParams:
        if self.doc_stride >= self.max_length // 2:
            raise ValueError("doc_stride must be less than half of max_length")
        return self


@dataclass(frozen=True)
class Span:
    """The best span of a window.

    Attributes:
        start: First character in the context.
        end: One past the last.
        score: Sum of its two logits; −inf if the window has no context.
        probability: Product of its two softmax shares.
        nothing: Sum of the logits of position 0.
        none_probability: Product of the softmax shares of position 0.
    """

    start: int
    end: int
    score: float
    probability: float
    nothing: float
    none_probability: float


def _answers(given: Any, context: str) -> dict[str, list[Any]]:
    """Return ``text`` and ``answer_start`` of the answers, each checked."""
    if isinstance(given, list):  # SQuAD's own JSON: a list of {text, answer_start}
        if not all(isinstance(x, Mapping) and "text" in x for x in given):
            raise ValueError("answers is not {text, answer_start}")
        starts = [x["answer_start"] for x in given if "answer_start" in x]
        given = {"text": [x["text"] for x in given], "answer_start": starts}
    if not isinstance(given, Mapping) or "text" not in given:
        raise ValueError("answers is not {text, answer_start}")
    texts = _listed(given["text"])
    starts = _listed(given.get("answer_start"))
    if not starts:
        starts = [_only_place(text, context) for text in texts]
    if len(starts) != len(texts):
        raise ValueError(f"{len(texts)} answers and {len(starts)} answer_start")
    for text, start in zip(texts, starts, strict=True):
        found = context[start : start + len(text)]
        if not text.strip() or found != text:
            raise ValueError(
                f"answer_start {start} points at {found!r}, and the answer is {text!r}"
            )
    return {"text": texts, "answer_start": starts}


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _only_place(text: str, context: str) -> int:
    count = context.count(text)
    if count != 1:
        raise ValueError(
            f"the answer {text!r} stands {count} times in the context; give its "
            "answer_start"
        )
    return context.index(text)


@register("task", "question-answering", QuestionAnsweringParams)
class QuestionAnswering:
    """Columns ``context``, ``question`` and ``answers`` in the shape of SQuAD."""

    head = "question-answering"
    form = "text"
    metrics = ("token-f1", "exact-match")

    def __init__(self, params: QuestionAnsweringParams) -> None:
        self.params = params
        self.unanswerable = False

    def parse(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``context``, ``question`` and ``answers`` of a row."""
        context, question = text_of(columns, "context"), text_of(columns, "question")
        answers = _answers(column_of(columns, "answers"), context)
        return {"context": context, "question": question, "answers": answers}

    def input_of(self, row: Mapping[str, Any]) -> str:
        """Return question and context."""
        return f"{row['question']}\x1f{row['context']}"

    def fit(self, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        """Note whether some training questions have no answer."""
        empty = [not row["answers"]["text"] for row in splits["train"]]
        if all(empty):
            raise DataError("no training row has an answer")
        self.unanswerable = any(empty)
        return {"unanswerable": self.unanswerable}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over whether "no answer" is an answer."""
        self.unanswerable = bool(state["unanswerable"])

    def prepare(self, processor: Any) -> None:
        """Check that texts can be padded, and that position 0 is free."""
        require_padding(processor)
        if processor("a", "b").sequence_ids(0)[0] is not None:
            raise ModelError(
                "the tokenizer puts no special token first, so nothing can stand for "
                "'no answer'",
                fix="choose an encoder (BERT, RoBERTa, DeBERTa)",
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]], processor: Any) -> Examples:
        """Return windows; `extra` holds each token's characters in the context.

        Raises:
            DataError: a question leaves no room for the context.
        """
        limit = min(self.params.max_length, processor.model_max_length)
        self._check_room(rows, processor, limit)
        made = processor(
            [row["question"] for row in rows],
            [row["context"] for row in rows],
            truncation="only_second",
            max_length=limit,
            stride=self.params.doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        found = Examples(
            made["input_ids"],
            [],
            made["overflow_to_sample_mapping"],
            "span",
            token_type_ids=made.get("token_type_ids"),
        )
        without = 0
        for k, row_number in enumerate(found.row):
            chars = [
                (int(start), int(end)) if which == 1 else None
                for (start, end), which in zip(
                    made["offset_mapping"][k], made.sequence_ids(k), strict=True
                )
            ]
            span = _place(chars, rows[row_number].get("answers"))
            without += span == [0, 0]
            found.labels.append(span)
            found.extra.append(chars)
        found.notes["windows_beyond_the_first"] = len(found) - len(rows)
        found.notes["windows_without_answer"] = without
        return found

    def _check_room(
        self, rows: Sequence[Mapping[str, Any]], processor: Any, limit: int
    ) -> None:
        room = limit - self.params.doc_stride - 8
        for row in rows:
            if (
                len(row["question"]) > room
                and len(processor(row["question"])[0]) > room
            ):
                raise DataError(
                    f"the question leaves no room for the context in {limit} tokens",
                    where=str(row.get("origin", "a row")),
                    fix="raise task.params.max_length, or shorten the question",
                )

    def row_of(self, given: Any) -> dict[str, Any]:
        """Return the row of (question, context), or of a mapping with both."""
        if isinstance(given, (tuple, list)) and len(given) == 2:
            given = {"question": given[0], "context": given[1]}
        if not isinstance(given, Mapping):
            raise ValueError("give a question with its context: (question, context)")
        return {name: text_of(given, name) for name in ("context", "question")}

    def reference(self, row: Mapping[str, Any]) -> list[str]:
        """Return the acceptable answers; none if there is no answer."""
        return list(row["answers"]["text"])

    def group(self, row: Mapping[str, Any]) -> str:
        """Return whether a row has an answer; metrics are told for each apart."""
        return "answerable" if row["answers"]["text"] else "unanswerable"

    def read(self, examples: Examples, i: int, logits: NDArray[np.float32]) -> Span:
        """Return the best span of a window."""
        import numpy as np

        p_2T = softmax(logits)
        wide = logits.astype(np.float64)
        chars = examples.extra[i]
        inside = np.array([c is not None and c[1] > c[0] for c in chars])
        allowed = np.pad(inside, (0, logits.shape[1] - len(inside)))
        first = np.where(allowed, wide[0], -np.inf)
        last = np.where(allowed, wide[1], -np.inf)
        score_TT = first[:, None] + last[None, :]
        count = logits.shape[1]
        gap = np.arange(count)[None, :] - np.arange(count)[:, None]
        score_TT[(gap < 0) | (gap >= self.params.max_answer_tokens)] = -np.inf
        s, e = divmod(int(score_TT.argmax()), count)
        score = float(score_TT[s, e])
        begin, end = (chars[s][0], chars[e][1]) if score > -np.inf else (0, 0)
        return Span(
            begin,
            end,
            score,
            float(p_2T[0, s] * p_2T[1, e]),
            float(wide[0, 0] + wide[1, 0]),
            float(p_2T[0, 0] * p_2T[1, 0]),
        )

    def _decide(self, readings: Sequence[Span]) -> tuple[Span | None, float]:
        """Return the chosen span and its probability; None: no answer."""
        best = max(readings, key=lambda span: span.score)
        nothing = min(readings, key=lambda span: span.nothing)
        if self.unanswerable:
            margin = nothing.nothing - best.score
            if margin > self.params.no_answer_threshold:
                return None, nothing.none_probability
        return best, best.probability

    def answer(self, row: Mapping[str, Any], readings: Sequence[Any]) -> Answer:
        """Return the text of the best span, or an empty one."""
        span, probability = self._decide(readings)
        text = row["context"][span.start : span.end] if span else ""
        return Answer(text, probability)

    def show(self, row: Mapping[str, Any], readings: Sequence[Any]) -> dict[str, Any]:
        """Return ``answer`` (empty: none), ``probability``, ``start`` and ``end``."""
        span, probability = self._decide(readings)
        return {
            "answer": row["context"][span.start : span.end] if span else "",
            "probability": probability,
            "start": span.start if span else None,
            "end": span.end if span else None,
        }


def _place(chars: Sequence[tuple[int, int] | None], answers: Any) -> list[int]:
    """Return [first, last] token of the first answer, [0, 0] if it is not all here."""
    if not answers or not answers["text"]:
        return [0, 0]
    begin = answers["answer_start"][0]
    end = begin + len(answers["text"][0])
    here = [(t, *c) for t, c in enumerate(chars) if c]
    first = [t for t, start, stop in here if start <= begin < stop]
    last = [t for t, start, stop in here if start < end <= stop]
    return [first[0], last[-1]] if first and last else [0, 0]
