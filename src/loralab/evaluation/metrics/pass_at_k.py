"""pass@k: the chance that one of k sampled programs passes a row's unit tests.

Chen et al. 2021, eq. 1, unbiased: of n samples of which c pass,

    pass@k = 1 − C(n − c, k) / C(n, k).

Rows have the shape of HumanEval: ``prompt`` (the head of a function), ``test`` (which
defines ``check``) and ``entry_point`` (the function's name).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from math import comb
from typing import Any

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from loralab.errors import ConfigError, DataError
from loralab.evaluation.sandbox import Limits, run_program
from loralab.evaluation.scores import Answers, Scores, mean_of
from loralab.registry import Params, register

_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_STOPS = re.compile(r"\n(?:class |def |#|if |print\()")
"""Where a completion has ended and something else begins (Chen et al. 2021, §2.1)."""


class PassAtKParams(Params):
    """How many programs, what each may use, and your consent to run them."""

    k: int = Field(1, ge=1)
    timeout: float = Field(3.0, gt=0, le=600, description="seconds a program may run")
    memory_mb: int = Field(512, ge=64, description="address space of a program, MiB")
    allow_execution: bool = Field(
        False, validate_default=True, description="run code that a model wrote"
    )

    @field_validator("allow_execution")
    @classmethod
    def _is_allowed(cls, allowed: bool) -> bool:
        if not allowed:
            raise PydanticCustomError(
                "execution_not_allowed",
                "pass-at-k executes code written by a model, in a sandbox that stops "
                "accidents, not attacks; set allow_execution=true if you accept that",
            )
        return allowed


def program(row: Mapping[str, Any], sample: str) -> str:
    """Return the program that tests one sample of a row.

    A sample may be the rest of the function, the whole of it, or a Markdown block of
    either. Of the rest of a function, what follows it is cut off, and its first line
    is indented again: answers are stripped of the space around them.
    """
    if fenced := _FENCE.search(sample):
        sample = fenced[1]
    if re.search(rf"^def {re.escape(row['entry_point'])}\b", sample, re.MULTILINE):
        sample = f"{row['prompt']}\n    pass\n\n{sample}"
    else:
        rest = sample if sample[:1].isspace() else f"    {sample}"
        stop = _STOPS.search(rest)
        sample = row["prompt"] + (rest[: stop.start()] if stop else rest)
    return f"{sample}\n\n{row['test']}\n\ncheck({row['entry_point']})\n"


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k of one row (Chen et al. 2021, eq. 1)."""
    return 1 - comb(samples - passed, k) / comb(samples, k)


def _check(answers: Answers, k: int) -> None:
    for at, (row, samples) in enumerate(
        zip(answers.rows, answers.samples or (), strict=True)
    ):
        where = f"metric pass-at-k, row {at}"
        missing = [x for x in ("prompt", "test", "entry_point") if x not in row]
        if missing:
            what = f"has no {', '.join(missing)}"
            raise DataError(what, where=where, fix="use rows of HumanEval's shape")
        if len(samples) < k:
            what = f"has {len(samples)} samples, and k is {k}"
            raise ConfigError(what, where=where, fix="ask for k samples or more a row")


@register(
    "metric",
    "pass-at-k",
    PassAtKParams,
    answers="text",
    better="higher",
    needs="samples",
)
def mean_pass_at_k(params: PassAtKParams, answers: Answers) -> Scores:
    """Return the mean over rows of pass@k, in [0, 1].

    Raises:
        DataError: a row is not of HumanEval's shape.
        ConfigError: a row has fewer than k samples.
    """
    _check(answers, params.k)
    limits = Limits(seconds=params.timeout, memory_mb=params.memory_mb)
    programs = [
        program(row, sample)
        for row, samples in zip(answers.rows, answers.samples or (), strict=True)
        for sample in samples
    ]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        passed = iter(pool.map(lambda one: run_program(one, limits).passed, programs))
    counts = [
        (len(samples), sum(next(passed) for _ in samples))
        for samples in answers.samples or ()
    ]
    return mean_of(
        [pass_at_k(samples, passes, params.k) for samples, passes in counts],
        proportion=all(samples == 1 for samples, _ in counts),
    )
