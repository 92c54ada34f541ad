r"""Where two tasks push a weight in opposite directions, counted on a sample of rows.

Of the elements that both tasks change, the share whose changes differ in sign. Sign
conflicts are what TIES merging (Yadav et al. 2023) is about; two independent updates
have a share of 1/2.

Counting needs elements of ΔW, so rows are drawn without replacement, a fixed number m
in each layer, and made a few at a time. With row i's x_i opposite elements of n_i that
both change, layers as strata h and rows as clusters (Cochran 1977, eqs. 6.11, 6.51):

    X = Σ_h out_h·x̄_h,   N = Σ_h out_h·n̄_h,   share = X / N        combined ratio
    Var(share) ≈ Σ_h out_h²·(1 − m_h/out_h)/m_h · s²_h(x − share·n) / N²

s²_h is the sample variance over the rows of a layer. A layer of which all rows were
drawn adds no error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loralab.merging.layer import Layer

BLOCK = 8
"""Rows that are made at a time."""


@dataclass(frozen=True)
class Share:
    """A share that was estimated.

    Attributes:
        value: The estimate.
        error: Its standard error; 0 where everything was counted.
    """

    value: float
    error: float


@dataclass(frozen=True, eq=False)
class Signs:
    """The moments of one or several layers' counts; all [T, T] float64.

    Attributes:
        X: Estimated number of opposite elements.
        N: Estimated number of elements that both tasks change.
        xx: Estimated variance of X.
        xn: Estimated covariance of X and N.
        nn: Estimated variance of N.
    """

    X: Tensor
    N: Tensor
    xx: Tensor
    xn: Tensor
    nn: Tensor

    def __add__(self, other: Signs) -> Signs:
        """Return the moments of both: layers are drawn independently."""
        return Signs(
            self.X + other.X,
            self.N + other.N,
            self.xx + other.xx,
            self.xn + other.xn,
            self.nn + other.nn,
        )

    def share(self, one: int, other: int) -> Share | None:
        """Return the share of opposite signs; None where no element has both."""
        here = (one, other)
        if not self.N[here]:
            return None
        value = self.X[here] / self.N[here]
        spread = self.xx[here] - 2 * value * self.xn[here] + value**2 * self.nn[here]
        error = math.sqrt(max(float(spread), 0.0)) / float(self.N[here])
        return Share(float(value), error)


def counted(layer: Layer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many elements of each row differ in sign, and how many both change.

    Args:
        layer: The tasks.
        rows: Numbers of rows, [m].

    Returns:
        Opposite and common elements, both [m, T, T] float64.
    """
    opposite, common = [], []
    for block in torch.split(rows, BLOCK):
        made = [
            (task.B[block].to(layer.dtype) @ task.A.to(layer.dtype)).sign()
            for task in layer.tasks
        ]
        signs = torch.stack(made, dim=1)
        both = signs.abs() @ signs.abs().mT
        opposite.append((both - signs @ signs.mT).double() / 2)
        common.append(both.double())
    return torch.cat(opposite), torch.cat(common)


def sampled(layer: Layer, rows: int, seed: int) -> Signs:
    """Return the moments of a layer, from rows that are drawn for it alone.

    Args:
        layer: The tasks.
        rows: How many; at least 2.
        seed: Of the draw, with the layer's name.
    """
    out = layer.shape[0]
    drawn = torch.randperm(out, generator=layer.generator(seed))[:rows]
    x, n = counted(layer, drawn)
    count = len(drawn)
    weight = out**2 * (1 - count / out) / count / max(count - 1, 1)
    dx, dn = x - x.mean(0), n - n.mean(0)
    return Signs(
        out * x.mean(0),
        out * n.mean(0),
        weight * (dx * dx).sum(0),
        weight * (dx * dn).sum(0),
        weight * (dn * dn).sum(0),
    )
