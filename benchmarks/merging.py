"""What merging costs in factored form: LoRA-OPCM against whole matrices and PEFT.

Each part runs in a process of its own. Memory is the resident peak (VmHWM), or by how
much that rises over what was held before (``rise_bytes``).

``dense``   8 adapters of rank 16 on one 4096 × 4096 weight: the seconds of the factored
            merge, and of FusionBench's rule with its full SVD of every step; how far
            both, and the same rule restricted to the rank, are from each other.
``files``   8 bf16 adapters of rank 16 for the seven linear layers of Llama-2-7B's 32
            blocks, on disk, to one bf16 adapter of rank 16, without a base model.
``peft``    The same input for `add_weighted_adapter(combination_type="svd")`, one layer
            of each shape in memory; the model's seconds are extrapolated from those.
``tasks``   Seconds against the number of tasks, joint and for one task more.

    python -m benchmarks.merging            # all, about ten minutes
    python -m benchmarks.merging files
    python -m benchmarks.merging --quick    # small sizes, to see that it works

Factors are Gaussian with a spectrum that decays, and half of what they hold is common
to all tasks, so that there is something to project. What is measured is time, memory
and rounding; of what merging does to tasks these numbers say nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.plan import high_water

RESULTS = Path(__file__).parent / "results" / "merging.json"
RANK, ADAPTERS = 16, 8
REPEATS = 5
"""Times that what takes less than `LONG` seconds is measured; the median is told."""
LONG = 2.0
ALPHA = 0.5


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    hidden: int = 4096
    inner: int = 11008
    blocks: int = 32
    tasks: tuple[int, ...] = (2, 4, 8, 16, 32, 64)

    @property
    def modules(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of a block: name -> (out, in)."""
        square, up = (self.hidden, self.hidden), (self.inner, self.hidden)
        return {
            **{f"self_attn.{name}_proj": square for name in "qkvo"},
            "mlp.gate_proj": up,
            "mlp.up_proj": up,
            "mlp.down_proj": up[::-1],
        }


QUICK = Size(256, 384, 2, (2, 4, 8))


def now_held() -> int:
    """Return the resident size; the peak is counted from here on."""
    high_water()
    return high_water()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds of a call and what it returned."""
    began = time.perf_counter()
    made = call()
    return time.perf_counter() - began, made


def usual(call: Callable[[], Any]) -> float:
    """Return the median seconds of some calls, or of one that takes long."""
    first, _ = timed(call)
    if first > LONG:
        return first
    return statistics.median(timed(call)[0] for _ in range(REPEATS))


def drawn(
    shape: tuple[int, int], tasks: Sequence[int], seed: int = 0
) -> Iterator[tuple[Any, Any]]:
    """Yield A [rank, in] and B [out, rank] of some tasks, float32."""
    import torch

    def normal(seed: int) -> tuple[Any, Any]:
        random = torch.Generator().manual_seed(seed)
        out, inner = shape
        A = torch.randn(RANK, inner, generator=random) / inner**0.5
        return A, torch.randn(out, RANK, generator=random) / out**0.5

    decay = 0.8 ** torch.arange(RANK)
    A, B = normal(1000 * seed)
    for task in tasks:
        own_A, own_B = normal(1000 * seed + 1 + task)
        yield A + own_A, (B + own_B) * decay


# --- against whole matrices


def reference(tasks: list[Any]) -> tuple[Any, list[float]]:
    """Return FusionBench's merge (opcm.py, with W_0 = 0) and the seconds of each step.

    The rule as it stands there: full SVD, all min(m, n) entries of the diagonal.
    """
    import torch

    merged, previous, norms, steps = tasks[0], 1.0, [float(tasks[0].norm())], []
    for task in tasks[1:]:
        began = time.perf_counter()
        norms.append(float(task.norm()))
        u, s, vh = torch.linalg.svd(merged, full_matrices=True)
        split = int((s.cumsum(0) / s.sum() > ALPHA).float().argmax())
        projected = u.T @ task @ vh.T
        projected.diagonal().fill_(0)
        projected[:split, :split] = 0
        raw = previous * merged + u @ projected @ vh
        previous = float(raw.norm()) / statistics.fmean(norms)
        merged = raw / previous
        steps.append(time.perf_counter() - began)
        print(f"  dense merge {len(steps)}: {steps[-1]:.1f} s", flush=True)
    return merged, steps


def rank_aware(tasks: list[Any]) -> Any:
    """Return the same with a diagonal that ends at the rank of what is merged.

    Vectors beyond the rank are not needed, so the SVD is a thin one; in double
    precision, to tell what rounding does to the others.
    """
    import torch

    merged = tasks[0]
    for task in tasks[1:]:
        u, s, vh = torch.linalg.svd(merged, full_matrices=False)
        kept = int((s > s[0] * len(s) * torch.finfo(s.dtype).eps).sum())
        u, s, v = u[:, :kept], s[:kept], vh[:kept].T
        split = int((s.cumsum(0) / s.sum() > ALPHA).float().argmax())
        along = u.T @ task @ v
        removed = torch.diag(along.diagonal())
        removed[:split, :split] = along[:split, :split]
        merged = merged + task - u @ removed @ v.T
    mean = statistics.fmean(float(task.norm()) for task in tasks)
    return merged * (mean / float(merged.norm()))


def part_dense(size: Size) -> dict[str, Any]:
    """Measure the factored merge against the one of whole matrices."""
    import torch

    from loralab.lowrank.factors import Factors
    from loralab.merging.layer import Layer
    from loralab.merging.method import method

    shape = (size.hidden, size.hidden)
    tasks = tuple(Factors(A, B, 2.0) for A, B in drawn(shape, range(ADAPTERS)))
    rule, found = method("opcm", alpha_threshold=ALPHA), {}
    merged: dict[str, Any] = {}
    for name in ("float64", "float32"):
        dtype = getattr(torch, name)

        def call(dtype: torch.dtype = dtype) -> Any:
            return rule.merged(Layer("w", tasks, dtype=dtype))

        held = now_held()
        seconds = usual(call)
        found[name] = {"seconds": seconds, "rise_bytes": high_water() - held}
        merged[name] = normed(call(), tasks)
    dense = [task.scale * (task.B.double() @ task.A.double()) for task in tasks]
    single = [task.float() for task in dense]
    held = now_held()
    theirs, steps = reference(single)
    rise = high_water() - held
    aware = rank_aware(dense)
    exact = merged["float64"]
    return {
        "shape": shape,
        "rank": RANK,
        "adapters": ADAPTERS,
        "alpha": ALPHA,
        "factored": found,
        "dense": {"seconds": sum(steps), "steps": steps, "rise_bytes": rise},
        "ratio": {n: sum(steps) / one["seconds"] for n, one in found.items()},
        "float32_from_float64": apart(merged["float32"], exact),
        "rank_aware_from_factored": apart(aware, exact),
        "reference_from_factored": apart(theirs.double(), exact),
    }


def normed(update: Any, tasks: Any) -> Any:
    """Return an update as a matrix, scaled to the mean norm of the tasks."""
    from loralab.lowrank.factors import frobenius_norm
    from loralab.lowrank.update import frobenius

    mean = statistics.fmean(frobenius_norm(task) for task in tasks)
    whole = update.L @ update.C @ update.R.T
    return whole.double() * (mean / frobenius(update))


def apart(one: Any, exact: Any) -> dict[str, float]:
    """Return the relative Frobenius distance, and the largest of any entry."""
    off = one - exact
    return {
        "relative": float(off.norm() / exact.norm()),
        "largest": float(off.abs().max()),
        "largest_entry": float(exact.abs().max()),
    }


# --- a 7B model's adapters, on disk


def adapter_files(folder: Path, size: Size) -> list[Path]:
    """Write the adapters as PEFT does."""
    import torch

    from loralab.lowrank.stream import write_tensors

    names = {
        f"model.layers.{block}.{name}": shape
        for block in range(size.blocks)
        for name, shape in size.modules.items()
    }
    prefix = "base_model.model."
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": "made",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [name.rpartition(".")[2] for name in size.modules],
        "task_type": "CAUSAL_LM",
    }
    plan = {}
    for name, (out, inner) in names.items():
        plan[f"{prefix}{name}.lora_A.weight"] = (torch.bfloat16, (RANK, inner))
        plan[f"{prefix}{name}.lora_B.weight"] = (torch.bfloat16, (out, RANK))

    def tensors(task: int) -> Iterator[tuple[str, torch.Tensor]]:
        for number, (name, shape) in enumerate(names.items()):
            A, B = next(drawn(shape, [task], number))
            yield f"{prefix}{name}.lora_A.weight", A.bfloat16()
            yield f"{prefix}{name}.lora_B.weight", B.bfloat16()

    folders = [folder / f"task-{task}" for task in range(ADAPTERS)]
    for task, made in enumerate(folders):
        made.mkdir()
        text = json.dumps(config)
        (made / "adapter_config.json").write_text(text, encoding="utf-8")
        weights = made / "adapter_model.safetensors"
        write_tensors(weights, plan, tensors(task), {"format": "pt"})
    return folders


def part_export(size: Size, folder: Path, dtype: str) -> dict[str, Any]:
    """Merge and export the adapters of a folder, in this process."""
    import torch

    from loralab.lowrank.files import AdapterFolder
    from loralab.merging.export.export import export
    from loralab.merging.export.room import Room
    from loralab.merging.merge import merged_layers
    from loralab.merging.method import method

    before = high_water()
    began = time.perf_counter()
    adapters = [AdapterFolder.open(path) for path in sorted(folder.glob("task-*"))]
    rule = method("opcm", alpha_threshold=ALPHA)
    made = export(
        folder / f"merged-{dtype}",
        merged_layers(rule, adapters, dtype=getattr(torch, dtype)),
        adapters,
        rule,
        room=Room(rank=RANK),
        dtype="bf16",
    )
    return {
        "algebra": dtype,
        "seconds": time.perf_counter() - began,
        "before_bytes": before,
        "peak_bytes": high_water(),
        "layers": len(made.layers),
        "written_bytes": made.bytes,
        "relative_error": made.relative_error,
        "relative_rounding": made.relative_rounding,
    }


def part_files(size: Size, quick: bool) -> dict[str, Any]:
    """Make the adapters, and export their merge in fresh processes."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        seconds, folders = timed(lambda: adapter_files(folder, size))
        weights = folders[0] / "adapter_model.safetensors"
        print(f"  made in {seconds:.1f} s", flush=True)
        rows = [alone("export", quick, made, dtype) for dtype in ("float64", "float32")]
        return {
            "modules": size.modules,
            "blocks": size.blocks,
            "rank": RANK,
            "adapters": ADAPTERS,
            "adapter_bytes": weights.stat().st_size,
            "exports": rows,
        }


def part_peft(size: Size) -> dict[str, Any]:
    """Measure PEFT's merge by SVD, a layer of each shape, and extrapolate."""
    import torch
    from peft import LoraConfig, get_peft_model

    shapes = list(size.modules.values())
    rows = []
    for shape in dict.fromkeys(shapes):
        base = torch.nn.ModuleDict(
            {"w": torch.nn.Linear(shape[1], shape[0], bias=False)}
        )
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["w"])
        model: Any = get_peft_model(base, config, adapter_name="task-0")
        names = [f"task-{task}" for task in range(ADAPTERS)]
        for name in names[1:]:
            model.add_adapter(name, config)
        with torch.no_grad():
            layer = model.base_model.model["w"]
            for name, (A, B) in zip(names, drawn(shape, range(ADAPTERS)), strict=True):
                layer.lora_A[name].weight.copy_(A)
                layer.lora_B[name].weight.copy_(B)
        held = now_held()

        def call(model: Any = model, names: list[str] = names) -> None:
            weights = [1.0] * len(names)
            model.add_weighted_adapter(
                names, weights, "merged", combination_type="svd", svd_rank=RANK
            )

        seconds, _ = timed(call)
        row: dict[str, Any] = {
            "shape": shape,
            "seconds": seconds,
            "rise_bytes": high_water() - held,
            "layers_of_this_shape": shapes.count(shape) * size.blocks,
        }
        rows.append(row)
        print(f"  {shape}: {seconds:.1f} s", flush=True)
    whole = sum(row["seconds"] * row["layers_of_this_shape"] for row in rows)
    return {"layers": rows, "extrapolated_seconds": whole}


# --- against the number of tasks

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "code, float64": ("float64", {}),
    "code, float32": ("float32", {}),
    "stable, float64": ("float64", {"mode": "stable"}),
    "stable by sketch, float64": (
        "float64",
        {"mode": "stable", "projection_method": "sketch", "sketch_size": 256},
    ),
}


def part_tasks(size: Size) -> list[dict[str, Any]]:
    """Measure joint merges of more and more tasks, and the last step alone."""
    import torch

    from loralab.lowrank.factors import Factors
    from loralab.merging.layer import Layer
    from loralab.merging.method import Step, method

    shape = (size.hidden, size.hidden)
    every = [Factors(A, B, 2.0) for A, B in drawn(shape, range(max(size.tasks)))]
    rows = []
    for count in size.tasks:
        tasks = tuple(every[:count])
        seconds = {}
        for way, (name, params) in WAYS.items():
            rule, dtype = method("opcm", **params), getattr(torch, name)

            def call(rule: Any = rule, dtype: Any = dtype, held: Any = tasks) -> Any:
                return rule.merged(Layer("w", held, dtype=dtype))

            seconds[way] = usual(call)
        rule, last = method("opcm"), tasks[-1]
        before = rule.merged(Layer("w", tasks[:-1]))

        def one_more(
            rule: Any = rule, before: Any = before, task: Any = last, at: int = count
        ) -> Any:
            return rule.add(before, task, Step("w", at - 1))

        row = {
            "tasks": count,
            "total_rank": RANK * count,
            "seconds": seconds,
            "one_more_seconds": usual(one_more),
        }
        rows.append(row)
        print(f"  {count:2} tasks, one more {row['one_more_seconds']:.3f} s; all: ")
        print("".join(f"    {n}: {s:.3f} s\n" for n, s in seconds.items()), end="")
    return rows


# --- all of it

PARTS: dict[str, Callable[[Size, bool], Any]] = {
    "dense": lambda size, quick: part_dense(size),
    "files": part_files,
    "peft": lambda size, quick: part_peft(size),
    "tasks": lambda size, quick: part_tasks(size),
}


def alone(part: str, quick: bool, *given: str) -> Any:
    """Run a part in a fresh process and return what it found."""
    command = [sys.executable, "-m", "benchmarks.merging", "--part", part, *given]
    if quick:
        command.append("--quick")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        last = ""
        for last in running.stdout:
            if not last.startswith(("{", "[")):
                print(last, end="", flush=True)
    if running.returncode:
        raise SystemExit(running.returncode)
    return json.loads(last)


def told(found: dict[str, Any]) -> None:
    """Print what was found in words."""
    if one := found.get("dense"):
        for name, ratio in one["ratio"].items():
            seconds = one["factored"][name]["seconds"]
            print(f"factored {name}: {seconds:.4f} s, dense takes {ratio:,.0f} times")
        for key in ("rank_aware", "reference"):
            off = one[f"{key}_from_factored"]["relative"]
            print(f"dense {key}: {off:.2g} from the factored one")
    for one in found.get("files", {}).get("exports", ()):
        print(
            f"files in {one['algebra']}: {one['seconds']:.1f} s, resident peak "
            f"{one['peak_bytes'] / 1e6:.0f} MB, {one['before_bytes'] / 1e6:.0f} of it "
            f"before; error {one['relative_error']:.2g}"
        )
    if one := found.get("peft"):
        print(f"PEFT: {one['extrapolated_seconds']:.0f} s, extrapolated")


def main() -> None:
    """Run the parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", nargs="+")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"no part {min(unknown)}")
    size = QUICK if given.quick else Size()
    if given.part:
        name, *rest = given.part
        if name == "export":
            print(json.dumps(part_export(size, Path(rest[0]), rest[1])))
        else:
            print(json.dumps(PARTS[name](size, given.quick)))
        return
    from loralab.runs.environment import environment

    here, load = environment(), os.getloadavg()
    found = {}
    for name in given.parts or PARTS:
        print(f"{name}:", flush=True)
        found[name] = alone(name, given.quick)
    told(found)
    if given.quick or given.parts:
        return
    content = {"environment": here, "load": load, "size": asdict(size), **found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RESULTS.name}")


if __name__ == "__main__":
    main()
