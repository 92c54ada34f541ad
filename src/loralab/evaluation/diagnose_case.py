"""A run's plain data, as the checks of `diagnose` see it; and what a check finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One usual cause that this run shows.

    Attributes:
        kind: A name that stays, such as ``learning_rate_low``.
        severity: ``failure``, ``cause``, ``suspect`` or ``note``.
        evidence: The figures that it was seen in.
        fix: What to try, in keys of the configuration where there is one.
    """

    kind: str
    severity: str
    evidence: str
    fix: str


@dataclass(frozen=True)
class Case:
    """The plain data of a run, and what several checks derive from it.

    Attributes:
        config: The resolved configuration.
        record: The content of ``run.json``.
        logs: The ``log`` events.
        validations: The ``validation`` events.
        result: The evaluation of the test split, or else of another; or empty.
    """

    config: Mapping[str, Any]
    record: Mapping[str, Any]
    logs: Sequence[Mapping[str, Any]]
    validations: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]

    @property
    def status(self) -> str:
        """The status, as of now."""
        return str(self.record["status"])

    @property
    def training(self) -> Mapping[str, Any]:
        """The training part of the configuration."""
        found: Mapping[str, Any] = self.config["training"]
        return found

    @property
    def plan(self) -> Mapping[str, Any]:
        """What was planned; empty if it ended before."""
        found: Mapping[str, Any] = self.record.get("plan", {})
        return found

    @property
    def train_rows(self) -> int:
        """Rows to train on."""
        return int(self.plan["rows"]["train"]) if self.plan else 0

    @property
    def steps(self) -> int:
        """Optimizer steps done; those planned where training has not ended."""
        done = self.record.get("training", self.plan)
        return int(done.get("steps", 0))

    @property
    def losses(self) -> list[float]:
        """The logged losses."""
        return [log["loss"] for log in self.logs]

    @property
    def norms(self) -> list[float]:
        """The logged gradient norms that are finite."""
        found = [log.get("grad_norm") for log in self.logs]
        return [x for x in found if x is not None and math.isfinite(x)]

    @property
    def diverged(self) -> bool:
        """Whether the loss became NaN or infinite."""
        error = str(self.record.get("error"))
        stopped = "loss is nan" in error or "loss is inf" in error
        return stopped or not all(map(math.isfinite, self.losses))

    def arm(self, metric: str, arm: str) -> Mapping[str, float] | None:
        """Return an interval of the evaluation: base, adapter or difference."""
        found: Mapping[str, float] | None
        found = self.result.get("metrics", {}).get(metric, {}).get(arm)
        return found

    def gain(self, metric: str) -> tuple[float, float, float] | None:
        """Return value, low and high of adapter minus base; above zero is better."""
        gap = self.arm(metric, "difference")
        if gap is None:
            return None
        if self.result["better"][metric] == "higher":
            return gap["value"], gap["low"], gap["high"]
        return -gap["value"], -gap["high"], -gap["low"]

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, ``not shown``, ``not measured``, or the status."""
        if self.status != "complete":
            return self.status
        gain = self.gain(self.result.get("primary", ""))
        if gain is None:
            return "not measured"
        if gain[1] > 0:
            return "better"
        return "worse" if gain[2] < 0 else "not shown"

    def thirds(self) -> tuple[float, float, float, float] | None:
        """Return the mean loss of the logs' first, middle, last third, and its noise.

        The noise is the standard error of a difference of two thirds, from successive
        differences; 0 where there are too few logs to tell.
        """
        losses = self.losses
        if len(losses) < 2 or not all(map(math.isfinite, losses)):
            return None
        k = max(1, len(losses) // 3)
        steps = [(b - a) ** 2 for a, b in pairwise(losses)]
        noise = math.sqrt(fmean(steps) / k) if len(losses) >= 6 else 0.0
        middle = losses[k:-k] or losses
        return fmean(losses[:k]), fmean(middle), fmean(losses[-k:]), noise

    @property
    def flat(self) -> bool:
        """Whether the logged losses show no fall."""
        thirds = self.thirds()
        if thirds is None:
            return False
        first, _, last, noise = thirds
        return first - last < max(0.01 * first, 2 * noise)

    def fall(self) -> str:
        """Tell the loss of the first and the last third."""
        thirds = self.thirds()
        if thirds is None:
            return "no two losses were logged"
        return (
            f"mean logged loss {thirds[0]:.4g} in the first third, {thirds[2]:.4g} in "
            f"the last ({len(self.logs)} logs)"
        )
