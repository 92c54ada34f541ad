"""The ranks that a finished run's adapter has, such as AdaLoRA's.

Read from the shapes of its tensors, not from its configuration: A is rank × inputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loralab.adapters.apportionment import WHERE, Module
from loralab.adapters.files import WEIGHTS
from loralab.errors import AdapterError
from loralab.registry import Params, register
from loralab.runs.run import Run

LORA_A = re.compile(r"base_model\.model\.(.+)\.lora_A(?:\.weight)?")


class FromRunParams(Params):
    """Which run."""

    run: str


@register("rank strategy", "from-run", FromRunParams, gives="ranks")
def from_run(
    params: FromRunParams,
    modules: Sequence[Module],
    statistics: Mapping[str, Any] | None,
    seed: int,
) -> list[int]:
    """Return the ranks of the run's adapter.

    Raises:
        RunError: no run, or none with an adapter, is there.
        AdapterError: its adapter is on other modules than those targeted.
    """
    folder = Run(Path(params.run).expanduser()).require_adapter()
    ranks = adapter_ranks(folder / WEIGHTS)
    odd = sorted(set(ranks) ^ {module.name for module in modules})
    if odd:
        side = "that run" if odd[0] in ranks else "this one"
        raise AdapterError(
            f"only {side} adapts {odd[0]} ({len(odd)} modules differ)",
            where=f"{WHERE}: {params.run}",
            fix="target the same modules of the same base",
        )
    return [ranks[module.name] for module in modules]


def adapter_ranks(file: Path) -> dict[str, int]:
    """Return path of a module in the base -> rank, from a safetensors file's header.

    Raises:
        AdapterError: the file cannot be read, or holds no LoRA.
    """
    try:
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(size))
    except (OSError, ValueError) as error:
        raise AdapterError("not safetensors", where=str(file), why=str(error)) from None
    ranks = {
        match[1]: int(entry["shape"][0])
        for key, entry in header.items()
        if (match := LORA_A.fullmatch(key))
    }
    if not ranks:
        raise AdapterError("no LoRA in it", where=str(file))
    return ranks
