"""The tools of the field as black boxes: adapters in, the merged ΔW of one weight out.

Read by `merging_laws.py`. mergekit pins other versions than we do, so it runs in an
environment of its own. It merges whole models: its inputs are base + ΔW, its result is
the difference to the base, on a Llama of one small layer.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

from loralab.lowrank.factors import Factors
from loralab.merging.layer import Layer
from loralab.merging.method import method
from loralab.registry import get, names

SHAPE = (32, 32)
RANK, TASKS = 4, 3


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter of one weight, ΔW = alpha/r·B·A, or alpha/√r with rsLoRA."""

    A: Tensor
    B: Tensor
    alpha: float
    rslora: bool = False

    @property
    def rank(self) -> int:
        """Its r."""
        return self.A.shape[0]

    @property
    def scale(self) -> float:
        """What PEFT multiplies B·A with."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    @property
    def dense(self) -> Tensor:
        """ΔW [out, in]."""
        return self.scale * (self.B @ self.A)


Merge = Callable[[Sequence[Adapter]], Tensor]


@dataclass(frozen=True)
class Tool:
    """A method of a tool.

    Attributes:
        name: As its users call it.
        merge: Adapters in, merged ΔW out.
        sums: Whether the method means Σ ΔW.
        tasks: How many adapters it takes.
        skip: Laws that cannot be asked of it.
    """

    name: str
    merge: Merge
    sums: bool = False
    tasks: int = TASKS
    skip: tuple[str, ...] = field(default=())


# ours


def ours(name: str, params: Mapping[str, Any]) -> Merge:
    """Return our method as a black box."""
    chosen = method(name, **params)

    def merge(adapters: Sequence[Adapter]) -> Tensor:
        tasks = tuple(Factors(a.A, a.B, a.scale) for a in adapters)
        update = chosen.merged(Layer("w", tasks, (None,) * len(tasks)))
        return update.L @ update.C @ update.R.T

    return merge


# PEFT


def of_peft(kind: str, **options: Any) -> Merge:
    """Return PEFT's add_weighted_adapter, of weights 1, as a black box."""

    def merge(adapters: Sequence[Adapter]) -> Tensor:
        torch.manual_seed(0)
        model: Any = nn.Sequential()
        model.add_module("w", nn.Linear(SHAPE[1], SHAPE[0], bias=False).double())
        for number, adapter in enumerate(adapters):
            config = peft.LoraConfig(
                r=adapter.rank,
                lora_alpha=adapter.alpha,  # type: ignore[arg-type]
                use_rslora=adapter.rslora,
                target_modules=["w"],
            )
            if number:
                model.add_adapter(str(number), config)
            else:
                model = peft.get_peft_model(model, config, adapter_name="0")
        layer = model.base_model.model.w
        for number, adapter in enumerate(adapters):
            layer.lora_A[str(number)].weight.data = adapter.A.clone()
            layer.lora_B[str(number)].weight.data = adapter.B.clone()
        given = dict(options)
        if kind.endswith("svd"):
            given["svd_rank"] = min(SHAPE)  # so that nothing is truncated
        called = [str(number) for number in range(len(adapters))]
        torch.manual_seed(0)
        model.add_weighted_adapter(
            called, [1.0] * len(called), "merged", combination_type=kind, **given
        )
        merged: Tensor = layer.get_delta_weight("merged").detach()
        return merged

    return merge


PEFT_KINDS: dict[str, dict[str, Any]] = {
    "svd": {},
    "linear": {},
    "cat": {},
    "ties": {"density": 0.5},
    "ties_svd": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "dare_linear_svd": {"density": 0.5},
    "dare_ties_svd": {"density": 0.5},
    "magnitude_prune": {"density": 0.5},
    "magnitude_prune_svd": {"density": 0.5},
}
SUMS = ("svd", "linear", "cat")
THINNED = ("ties", "dare", "magnitude", "magmax", "della", "breadcrumbs")
DRAWN = ("dare", "della")
"""What the names of methods have in them that leave entries out (at random)."""


def peft_tools() -> list[Tool]:
    """Return every combination type of the installed PEFT."""
    return [
        Tool(kind, of_peft(kind, **options), kind in SUMS, skip=_thinned(kind))
        for kind, options in PEFT_KINDS.items()
    ]


def _thinned(name: str) -> tuple[str, ...]:
    """Return the laws that are not asked of a method, as it means to break them.

    One that leaves entries out does not give an adapter back; one that leaves them out
    at random draws other entries for another order.
    """
    laws: tuple[str, ...] = ()
    if any(part in name for part in THINNED):
        laws += ("identity", "rsLoRA")
    if any(part in name for part in DRAWN):
        laws += ("permutation",)
    return laws


# mergekit

WEIGHT = "model.layers.0.self_attn.q_proj.weight"
BASE_NORM = 1500.0
"""‖W‖ of the base; the updates that are drawn have norms of 11 to 18."""


class Mergekit:
    """mergekit in an environment of its own, one process that answers line by line."""

    def __init__(self, python: str, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._process = subprocess.Popen(
            [python, str(Path(__file__).parent / "mergekit_process.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.version = self._ask({"about": True})["version"]
        self._base = folder / "base"
        self._weights = self._model()

    def _model(self) -> dict[str, Tensor]:
        """Write the base and return its weights."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=SHAPE[1],
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
        )
        model = LlamaForCausalLM(config).float()
        with torch.no_grad():  # an update is then some 1 % of the weight
            weight = model.get_parameter(WEIGHT)
            weight.mul_(BASE_NORM / weight.norm())
        model.save_pretrained(self._base)
        return {name: t.clone() for name, t in model.state_dict().items()}

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith("answer "):
            if not line:
                raise RuntimeError("mergekit's process ended")
        told: dict[str, Any] = json.loads(line.removeprefix("answer "))
        return told

    def merge(
        self,
        name: str,
        params: Mapping[str, Any],
        adapters: Sequence[Adapter],
        dtype: torch.dtype,
    ) -> Tensor:
        """Return merged − base of the one weight that the adapters change."""
        from safetensors.torch import load_file

        folders = [self._write(adapter, dtype) for adapter in adapters]
        self._count += 1
        out = self._folder / f"merged-{self._count}"
        config: dict[str, Any] = {
            "merge_method": name,
            "dtype": str(dtype).removeprefix("torch."),
            "models": [
                {"model": str(folder), "parameters": {"weight": 1.0, **params}}
                for folder in folders
            ],
            "base_model": str(self._base),
        }
        if name in ("linear", "karcher"):
            config.pop("base_model")
        told = self._ask({"config": config, "out": str(out)})
        if "error" in told:
            raise RuntimeError(told["error"])
        merged = load_file(out / "model.safetensors")[WEIGHT]
        return merged.double() - self._weights[WEIGHT].to(dtype).double()

    def _write(self, adapter: Adapter, dtype: torch.dtype) -> Path:
        """Write base + ΔW as a model of its own."""
        from safetensors.torch import save_file

        self._count += 1
        folder = self._folder / f"model-{self._count}"
        folder.mkdir()
        weights = dict(self._weights)
        base = weights[WEIGHT].to(dtype).double()
        weights[WEIGHT] = base + adapter.dense
        weights = {name: t.to(dtype).clone() for name, t in weights.items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = (self._base / "config.json").read_text()
        (folder / "config.json").write_text(config)
        return folder


MERGEKIT: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "ties": {"density": 0.5},
    "dare_linear": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.1},
    "della_linear": {"density": 0.5, "epsilon": 0.1},
    "breadcrumbs": {"density": 0.5, "gamma": 0.05},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.05},
    "karcher": {},
    "model_stock": {},
}


def mergekit_tools(kit: Mergekit) -> list[Tool]:
    """Return methods of mergekit; it sees ΔW only, so ranks cannot be asked of it."""

    def box(name: str, params: Mapping[str, Any], dtype: torch.dtype) -> Merge:
        return lambda adapters: kit.merge(name, params, adapters, dtype)

    unasked = ("rsLoRA", "mixed ranks", "driver")
    tools = [
        Tool(
            name,
            box(name, params, torch.float32),
            sums=name == "task_arithmetic",
            skip=(*unasked, *_thinned(name)),
        )
        for name, params in MERGEKIT.items()
    ]
    low = box("task_arithmetic", {}, torch.bfloat16)
    return [*tools, Tool("task_arithmetic, bfloat16", low, sums=True, skip=unasked)]


def our_tools() -> list[Tool]:
    """Return our methods; those that need sketches of inputs are left out."""
    tools = [_our_tool(name) for name in names("merge method") if _plain(name)]
    whole = _our_tool("core-space", reference="updates")
    return [*tools, replace(whole, name="core-space reference=updates")]


def _plain(name: str) -> bool:
    return "needs" not in get("merge method", name).facts


def _our_tool(name: str, **params: Any) -> Tool:
    """Return one method with its defaults, of full rank where it cuts its result.

    A law that holds with params of its own only (a density of 1) is one that the
    method means to break otherwise.
    """
    entry = get("merge method", name)
    laws, fields = entry.facts["laws"], entry.schema.model_fields
    if "rank" in fields and "rank" not in UNITS.get(name, ()):
        params["rank"] = min(SHAPE)
    if name in SUMS_OF_OURS and "scale" in fields:
        params["scale"] = 1.0
    asked = ("permutation",) if name in SUMS_OF_OURS else ("identity", "permutation")
    skip = tuple(law for law in asked if laws.get(law, True))
    return Tool(
        name,
        ours(name, params),
        sums=name in SUMS_OF_OURS,
        tasks=int(entry.facts.get("most_tasks", TASKS)),
        skip=(*skip, *(["rsLoRA"] if "identity" in skip else [])),
    )


SUMS_OF_OURS = ("task-arithmetic", "cat", "svd", "c-task-arithmetic")
UNITS = {"lora-lego": ("rank",)}
"""Methods whose rank is no cut of the result: how many units it clusters into."""
