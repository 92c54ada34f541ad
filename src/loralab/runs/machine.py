"""What works on this machine, each thing found by trying it.

Nothing here prints. A probe that fails says how; it never raises what a library throws
at it, since a broken library is just what is looked for. Packages that take many
seconds to import (vLLM) are looked up, not imported, and their probe says so.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if TYPE_CHECKING:
    import torch

Versions = Mapping[str, str]
"""Package -> installed version; what is not installed has no key."""

ENGINES = ("torch", "onnxruntime", "onnxruntime-genai", "vllm")
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Probe:
    """One thing that was tried.

    Attributes:
        topic: What it belongs to, such as ``dtype``.
        name: What was tried, such as ``bf16 on cpu``.
        works: None where there is nothing to try: a figure, a setting.
        detail: What was seen.
        fix: What to do if it is wanted.
    """

    topic: str
    name: str
    works: bool | None
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Trap:
    """A combination of versions that is known to go wrong.

    Attributes:
        package: The package at fault.
        versions: Its versions that go wrong.
        wrong: What goes wrong.
        fix: What to do.
        beside: Only beside this package …
        beside_versions: … in these versions.
    """

    package: str
    versions: str
    wrong: str
    fix: str
    beside: str = ""
    beside_versions: str = ""


TRAPS = (
    Trap(
        "peft",
        "<0.21.2",
        "adapters on encoder-decoder models break",
        'pip install "peft>=0.21.2"',
        "transformers",
        ">=5.18",
    ),
    Trap(
        "bitsandbytes",
        "<0.50",
        "8-bit optimizers do not run on a CPU; 0.46.0 and 0.48.0 are broken",
        'pip install "bitsandbytes>=0.50"',
    ),
    Trap(
        "torchao",
        "<0.16",
        "PEFT refuses it: 0.16 is its minimum",
        'pip install "torchao>=0.16"',
    ),
    Trap(
        "gptqmodel",
        "<7",
        "PEFT wants 7.0 for adapters on GPTQ models",
        'pip install "gptqmodel>=7"',
    ),
    Trap(
        "optimum-intel",
        "",
        "it wants transformers < 5.6 and huggingface_hub < 1.22",
        "install it into an environment of its own",
        "transformers",
        ">=5.6",
    ),
    Trap(
        "huggingface-hub",
        ">=1",
        "transformers 4 does not work with it",
        'pip install "transformers>=5.23,<5.24"',
        "transformers",
        "<5",
    ),
    Trap(
        "trl",
        ">=1",
        "it needs datasets 4.7",
        'pip install "datasets>=5.2"',
        "datasets",
        "<4.7",
    ),
    Trap(
        "mergekit",
        "",
        "it pins pydantic 2.10, accelerate 1.6, safetensors 0.5",
        "install it into an environment of its own",
    ),
)
"""From the release notes and issue threads of the packages, up to November 2026."""


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[canonicalize_name(name)] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sprung(versions: Versions) -> list[Trap]:
    """Return the traps that these versions have stepped into."""

    def within(name: str, allowed: str) -> bool:
        held = versions.get(name)
        return held is not None and SpecifierSet(allowed).contains(
            held, prereleases=True
        )

    return [
        trap
        for trap in TRAPS
        if within(trap.package, trap.versions)
        and (not trap.beside or within(trap.beside, trap.beside_versions))
    ]


def trap_packages() -> list[str]:
    """Return every package that a trap names."""
    return sorted({n for t in TRAPS for n in (t.package, t.beside) if n})


def requirements() -> list[Requirement]:
    """Return what the installed loralab says it needs, without the extras."""
    try:
        listed = [Requirement(text) for text in requires("loralab") or []]
    except PackageNotFoundError:  # run from a checkout that was never installed
        return []
    return [r for r in listed if r.marker is None or r.marker.evaluate()]


def unmet(needed: Iterable[Requirement], versions: Versions) -> list[str]:
    """Return the requirements that are not installed, or in another version."""
    return [
        f"{one.name}{one.specifier}"
        for one in needed
        if (held := versions.get(canonicalize_name(one.name))) is None
        or not one.specifier.contains(held, prereleases=True)
    ]


def _tried(topic: str, name: str, trial: Callable[[], str], fix: str = "") -> Probe:
    """Return what a trial says, or how it failed."""
    logging.disable(logging.WARNING)  # the libraries' own words on slower kernels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Probe(topic, name, True, trial())
    except Exception as error:
        # whatever a library throws is the finding
        line = str(error).strip().split("\n")[0]
        return Probe(topic, name, False, f"{type(error).__name__}: {line}", fix)
    finally:
        logging.disable(logging.NOTSET)


def devices() -> list[Probe]:
    """Return which devices there are; each adds two numbers."""
    import torch

    def adds(device: str) -> str:
        total = (torch.ones(2, device=device) + 1).sum().item()
        if total != 4:
            raise ArithmeticError(f"1 + 1 summed twice is {total} here")
        if device == "cuda":
            names = [
                torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
            ]
            return ", ".join(names)
        return f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"

    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    return [
        _tried("device", name, lambda name=name: adds(name))  # type: ignore[misc]
        if has
        else Probe("device", name, False, "torch sees none")
        for name, has in there.items()
    ]


def _product(device: str, dtype: torch.dtype, size: int = 256) -> tuple[float, float]:
    """Return relative error and seconds of a matrix product."""
    import torch

    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(size, size, generator=draw) for _ in range(2))
    exact = a.double() @ b.double()
    x, y = a.to(device, dtype), b.to(device, dtype)
    times = []
    for _ in range(4):  # the first one also loads kernels
        began = time.perf_counter()
        held = (x @ y).cpu()  # waits for the device
        times.append(time.perf_counter() - began)
    return float((held.double() - exact).norm() / exact.norm()), min(times)


def dtypes(device: str) -> list[Probe]:
    """Return which dtypes the device multiplies matrices in, with error and speed."""
    import torch

    def multiply(dtype: torch.dtype) -> str:
        error, seconds = _product(device, dtype)
        if not error < 0.05:
            raise ArithmeticError(f"relative error {error:.2g}")
        slower = 1.0 if dtype is torch.float32 else seconds / plain
        speed = f", {slower:.0f} × slower than fp32" if slower > 2 else ""
        return f"relative error {error:.1g}{speed}"

    plain = _product(device, torch.float32)[1]
    found = [
        _tried("dtype", f"{name} on {device}", lambda kind=kind: multiply(kind))  # type: ignore[misc]
        for name, kind in (
            ("fp32", torch.float32),
            ("bf16", torch.bfloat16),
            ("fp16", torch.float16),
        )
    ]
    if device == "cuda":
        found.append(_tried("dtype", "TF32 on cuda", _tf32))
    else:
        found.append(Probe("dtype", "TF32", False, "only NVIDIA GPUs have it"))
    return found


def _tf32() -> str:
    """Multiply with and without TF32: where it is there, it rounds more."""
    import torch

    held = torch.backends.cuda.matmul.allow_tf32
    errors = []
    try:
        for allowed in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            errors.append(_product("cuda", torch.float32)[0])
    finally:
        torch.backends.cuda.matmul.allow_tf32 = held
    if errors[1] < 10 * errors[0]:
        raise ArithmeticError("products are the same with it: this GPU has none")
    return f"relative error {errors[1]:.1g} instead of {errors[0]:.1g}"


def quantized(device: str) -> list[Probe]:
    """Return whether 4-bit and 8-bit layers and 8-bit optimizers compute here."""
    names = ("4-bit (NF4) layer", "8-bit layer", "8-bit AdamW", "paged 8-bit AdamW")
    absent = not installed(["bitsandbytes"])
    if absent or device == "mps":
        fix = "pip install bitsandbytes" if absent else "model.storage=affine-int4"
        why = f"not installed: {fix}" if absent else "on mps it would download kernels"
        return [Probe("quantized", name, False, why, fix) for name in names]
    trials: tuple[Callable[[], str], ...] = (
        lambda: _layer(device, 4),
        lambda: _layer(device, 8),
        lambda: _optimizer(device, "AdamW8bit"),
        lambda: _optimizer(device, "PagedAdamW8bit"),
    )
    found = [
        _tried("quantized", f"{name} on {device}", trial)
        for name, trial in zip(names[:3], trials[:3], strict=True)
    ]
    if device == "cuda":
        return [*found, _tried("quantized", f"{names[3]} on cuda", trials[3])]
    return [*found, Probe("quantized", names[3], False, "needs CUDA")]


def _layer(device: str, bits: int) -> str:
    import torch

    bnb = import_module("bitsandbytes")
    draw = torch.Generator().manual_seed(0)
    plain = torch.nn.Linear(64, 64)
    with torch.no_grad():
        plain.weight.normal_(generator=draw)
    if bits == 4:
        made = bnb.nn.Linear4bit(64, 64, quant_type="nf4", compute_dtype=torch.float32)
    else:
        made = bnb.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    made.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(4, 64, generator=draw)
    with torch.no_grad():
        asked, said = plain(x), made.to(device)(x.to(device)).float().cpu()
    error = float((said - asked).norm() / asked.norm())
    if not error < 0.3:
        raise ArithmeticError(f"relative error {error:.2g}")
    return f"relative error {error:.1g}, bitsandbytes {version('bitsandbytes')}"


def _optimizer(device: str, name: str) -> str:
    import torch

    bnb = import_module("bitsandbytes")
    # 4096 elements are the fewest that bitsandbytes keeps in 8 bits
    weight = torch.nn.Parameter(torch.zeros(8192, device=device))
    weight.grad = torch.ones_like(weight)
    optimizer = getattr(bnb.optim, name)([weight], lr=1e-3)
    optimizer.step()
    moved = float(weight.detach().abs().mean())
    if not 5e-4 < moved < 2e-3:
        raise ArithmeticError(f"a step of 1e-3 moved weights by {moved:.2g}")
    return f"state in {optimizer.state[weight]['state1'].dtype}"


def packages(topic: str, names: Iterable[str], fixes: Mapping[str, str]) -> list[Probe]:
    """Return which optional packages are installed; they are not imported."""
    held = installed(names)
    return [
        Probe(topic, name, True, f"{held[name]} installed (not tried)")
        if name in held
        else Probe(
            topic, name, False, "not installed", fixes.get(name, f"pip install {name}")
        )
        for name in names
    ]


def engines() -> list[Probe]:
    """Return which inference engines are installed."""
    found = packages("engine", ENGINES[1:], {"vllm": "pip install vllm (needs CUDA)"})
    return [Probe("engine", "torch", True, version("torch")), *found]


def trackers() -> list[Probe]:
    """Return which trackers are installed, and whether the key is set."""
    key = "set" if os.environ.get("WANDB_API_KEY") else "not set"
    return [
        *packages("tracker", TRACKERS, {}),
        Probe("tracker", "WANDB_API_KEY", None, key),
    ]


def memory() -> dict[str, int]:
    """Return total and available memory in bytes; also of the GPU, if any."""
    import psutil
    import torch

    now = psutil.virtual_memory()
    found = {"total": now.total, "available": now.available}
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found |= {"gpu_total": total, "gpu_available": free}
    return found


def disk_free(path: Path) -> int:
    """Return the free bytes where `path` is, or would be made."""
    there = path.expanduser().absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free
