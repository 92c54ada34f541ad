"""Which laws of merging the tools of the field keep: a scoreboard, measured.

Every tool is a black box: adapters in, the merged update of one weight out (as a dense
matrix: it is small here). A law compares two calls that must agree, and what is told is
the worst relative Frobenius difference over several random draws:

    identity      one adapter merges to itself
    rsLoRA        the same for an adapter with use_rslora
    mixed ranks   ranks 2 and 4 give what the same updates give when stored as rank 4
    gauge         B G and G⁻¹ A instead of B and A (the same ΔW) change nothing
    scale         all updates doubled, the merged one is doubled
    permutation   the order of the adapters does not matter
    driver        another LAPACK driver for the SVD gives the same result
    sum           (methods that mean Σ ΔW) the merged update is that sum

    python -m benchmarks.merging_laws                        # ours and PEFT's
    python -m benchmarks.merging_laws --mergekit PYTHON      # and mergekit's

PYTHON is that of an environment of its own. mergekit merges whole models: its inputs
are base + ΔW, its result the difference to the base, on a Llama of one small layer
whose weight is about a hundred times the update: what rounding a whole model costs.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import scipy.linalg
import torch
from benchmarks.merging_tools import (
    RANK,
    SHAPE,
    Adapter,
    Mergekit,
    Tool,
    mergekit_tools,
    our_tools,
    peft_tools,
)
from torch import Tensor

from loralab.errors import LoralabError
from loralab.runs.environment import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "merging_laws.json"
PAGE = HERE.parent / "docs" / "merging-laws.md"
DRAWS = 5
LAWS = (
    "identity",
    "rsLoRA",
    "mixed ranks",
    "gauge",
    "scale",
    "permutation",
    "driver",
    "sum",
)
HOLDS = 1e-4
"""Relative difference below which a law holds; rounding of float32 is below it."""
BY_DEFINITION = (
    "What is off here is so by the method's own definition, and its docstring says "
    "why: `lora-lego` clusters the stored rows and columns, `core-space` takes its "
    "reference from the stored factors unless told otherwise, and `opcm-separate`, a "
    "baseline, projects B and A apart."
)


def drawn(seed: int, rank: int = RANK, rslora: bool = False) -> Adapter:
    """Return a random adapter in float64, with a spectrum that decays."""
    random = torch.Generator().manual_seed(seed)
    out, inner = SHAPE
    decay = 0.7 ** torch.arange(rank, dtype=torch.float64)
    B = torch.randn(out, rank, generator=random, dtype=torch.float64) * decay
    A = torch.randn(rank, inner, generator=random, dtype=torch.float64)
    return Adapter(A / math.sqrt(inner), B, 2.0 * rank, rslora)


def difference(found: Tensor, wanted: Tensor) -> float:
    """Return ‖found − wanted‖ / ‖wanted‖."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm())


@contextmanager
def other_driver() -> Iterator[None]:
    """Use LAPACK's gesvd in place of gesdd, on a null space turned at random."""
    original = torch.linalg.svd

    def gesvd(X: Tensor, full_matrices: bool = True, **_: Any) -> Any:
        U, s, Vh = scipy.linalg.svd(
            X.detach().double().numpy(),
            full_matrices=full_matrices,
            lapack_driver="gesvd",
        )
        made = [torch.from_numpy(part.copy()).to(X.dtype) for part in (U, s, Vh)]
        return tuple(made)

    torch.linalg.svd = gesvd
    try:
        yield
    finally:
        torch.linalg.svd = original


def pairs(tool: Tool, seed: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """Yield each law that can be asked of a tool, and what measures it once."""
    tasks = [drawn(100 * seed + i) for i in range(tool.tasks)]
    merge = tool.merge

    def gauge() -> float:
        random = torch.Generator().manual_seed(seed)
        G = torch.randn(RANK, RANK, generator=random, dtype=torch.float64)
        first = tasks[0]
        turned = replace(first, B=first.B @ G, A=torch.linalg.solve(G, first.A))
        return difference(merge([turned, *tasks[1:]]), merge(tasks))

    def mixed() -> float:
        small = drawn(100 * seed + 50, rank=2)
        wide = replace(
            small,
            A=torch.cat([small.A, torch.zeros_like(small.A)]),
            B=torch.cat([small.B, torch.zeros_like(small.B)], dim=1),
            alpha=small.scale * RANK,
        )
        rest = tasks[1:]
        return difference(merge([small, *rest]), merge([wide, *rest]))

    def driver() -> float:
        expected = merge(tasks)
        with other_driver():
            return difference(merge(tasks), expected)

    def scale() -> float:
        doubled = [replace(task, alpha=2 * task.alpha) for task in tasks]
        return difference(merge(doubled), 2 * merge(tasks))

    yield "identity", lambda: difference(merge(tasks[:1]), tasks[0].dense)
    rooted = drawn(seed, rslora=True)
    yield "rsLoRA", lambda: difference(merge([rooted]), rooted.dense)
    yield "mixed ranks", mixed
    yield "gauge", gauge
    yield "scale", scale
    yield "permutation", lambda: difference(merge(tasks[::-1]), merge(tasks))
    yield "driver", driver
    if tool.sums:
        total = sum((task.dense for task in tasks[1:]), tasks[0].dense)
        yield "sum", lambda: difference(merge(tasks), total)


def measured(tool: Tool) -> dict[str, Any]:
    """Return law -> worst relative difference over the draws, or what it refused."""
    found: dict[str, Any] = {}
    for seed in range(1, DRAWS + 1):
        for law, ask in pairs(tool, seed):
            if law in tool.skip or isinstance(found.get(law), str):
                continue
            try:
                found[law] = max(found.get(law, 0.0), ask())
            except (LoralabError, ValueError, RuntimeError, KeyError) as error:
                found[law] = f"refused: {str(error).splitlines()[0]}"
    return found


# what is told


def verdict(value: Any) -> str:
    """Return a cell of the page."""
    if value is None:
        return ""
    if isinstance(value, str):
        return "refused"
    return "holds" if value < HOLDS else f"**{float(f'{100 * value:.2g}'):g} % off**"


def table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a Markdown table of methods × laws."""
    head = ["| method | " + " | ".join(LAWS) + " |", "|---" * (len(LAWS) + 1) + "|"]
    cells = [
        f"| `{name}` | " + " | ".join(verdict(found.get(law)) for law in LAWS) + " |"
        for name, found in rows.items()
    ]
    return head + cells


def page(told: Mapping[str, Any]) -> str:
    """Return the scoreboard as Markdown."""
    about = (__doc__ or "").split("    python -m")[0].split("\n", 1)[1]
    lines = [
        "# Laws of merging: a scoreboard",
        "",
        "Made by `python -m benchmarks.merging_laws`; every cell is measured.",
        about.rstrip(),
        "",
        f"A law holds where the worst of {told['draws']} draws differs by less than "
        f"{told['holds']:.0e}. An empty cell is a law that cannot be asked: a method "
        "that leaves entries out does not give one adapter back, one that draws them "
        "at random has no order, mergekit sees no ranks.",
        "",
    ]
    for tool in told["tools"]:
        lines += [f"## {tool['name']} {tool['version']}", "", *table(tool["methods"])]
        refused = {
            law: value
            for found in tool["methods"].values()
            for law, value in found.items()
            if isinstance(value, str)
        }
        notes = [f"- {law}: {value}" for law, value in refused.items()]
        if tool["name"] == "loralab":
            notes.append(BY_DEFINITION)
        lines += ["", *notes, ""] if notes else [""]
    return "\n".join(lines).rstrip() + "\n"


def record(name: str, version: str, tools: Sequence[Tool]) -> dict[str, Any]:
    """Return what was measured of one tool."""
    methods = {tool.name: measured(tool) for tool in tools}
    return {"name": name, "version": version, "methods": methods}


def main() -> None:
    """Measure, and write the results and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mergekit", help="python of an environment that has it")
    given = parser.parse_args()
    found = [
        record("loralab", version("loralab"), our_tools()),
        record("PEFT", version("peft"), peft_tools()),
    ]
    if given.mergekit:
        with tempfile.TemporaryDirectory() as folder:
            kit = Mergekit(given.mergekit, Path(folder))
            found.append(record("mergekit", kit.version, mergekit_tools(kit)))
    told = {
        "tools": found,
        "draws": DRAWS,
        "holds": HOLDS,
        "environment": environment(),
    }
    RESULTS.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(told))
    print(page(told))


if __name__ == "__main__":
    main()
