"""Answers `merging_laws.py` from an environment that has mergekit.

One JSON object a line in: ``{"about": true}``, or a merge configuration and where to
write; one line ``answer {…}`` out.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from typing import Any

import torch
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions


def answered(question: dict[str, Any]) -> dict[str, Any]:
    """Return what one question is answered with."""
    if question.get("about"):
        return {"version": version("mergekit")}
    torch.manual_seed(0)
    options = MergeOptions(copy_tokenizer=False, random_seed=0, quiet=True)
    config = MergeConfiguration.model_validate(question["config"])
    try:
        run_merge(config, out_path=question["out"], options=options)
    except Exception as error:  # what it cannot do is a result
        return {"error": f"{type(error).__name__}: {error}"}
    return {"done": True}


for line in sys.stdin:
    print("answer " + json.dumps(answered(json.loads(line))), flush=True)
