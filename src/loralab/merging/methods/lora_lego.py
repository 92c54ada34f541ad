"""LoRA-LEGO: the rank-one units of all adapters, clustered, one unit a cluster.

    units m_i = [√s·b_i; √s·a_i]  of  ΔW_t = Σ_i s b_i a_iᵀ,  all tasks' together
    k-means: k clusters with centroids m̄_j
    m̂_j = m̄_j · mean_{i∈j} ‖m_i‖ / ‖m̄_j‖              (norm decay of a mean)
    ΔW = √(r/k) Σ_j b̂_j â_jᵀ                           (variance of k units, not r)

Zhao et al., Merging LoRAs like Playing LEGO, ICLR 2025 (arXiv 2409.16167): minimal
semantic units, rank-wise clustering, "dual reweighting". There is no official code to
follow, and the paper's own formulas were not at hand: the Euclidean norm in the first
reweighting is a choice (a re-implementation takes the largest entry), r in the second
is the largest rank among the tasks. As many clusters as units, or more, is the sum.

This is not a rule of ΔW: B → BG, A → G⁻¹A gives other units, another clustering and
another merge, even when G only rescales, as the balance of b and a in a unit decides
what is near. The scale s is split evenly between both (a minus stays with b). All is
computed in coordinates of the common bases, which keeps every distance. k-means
(Lloyd's, k-means++ starts, the best of `restarts`) is drawn from the layer's own
generator: the same seed gives the same merge, another order of the tasks may not.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from loralab.lowrank.update import Update, truncated
from loralab.merging.layer import Layer
from loralab.merging.methods._spectral import Scaled
from loralab.registry import register


class LoRALEGOParams(Scaled):
    """Parameters of LoRA-LEGO.

    Attributes:
        rank: k, clusters; by default the largest rank among the layer's tasks.
        seed: Of the starts of k-means.
        restarts: Starts of k-means, of which the best counts.
        max_iter: Steps of one start at most.
    """

    rank: int | None = Field(default=None, ge=1)
    seed: int = 0
    restarts: int = Field(default=10, ge=1)
    max_iter: int = Field(default=300, ge=1)


@register(
    "merge method",
    "lora-lego",
    LoRALEGOParams,
    laws={"identity": {}, "scale": {}, "rank": {}},
)
def lora_lego(params: LoRALEGOParams, layer: Layer) -> Update:
    """Return the sum of one reweighted unit for each cluster of all tasks' units."""
    space = layer.space
    units, split = _units(layer)
    rank = max(task.rank for task in layer.tasks)
    count = min(params.rank or rank, len(units))
    if not count:
        return space.update(space.total)
    labels = _clusters(units, count, layer.generator(params.seed), params)
    mean = _means(labels).to(units)
    centroids = mean @ units
    length = centroids.norm(dim=1)
    growth = (mean @ units.norm(dim=1)) / torch.where(length > 0, length, 1.0)
    b, a = (growth[:, None] * centroids).split(split, dim=1)
    core = params.scale * math.sqrt(rank / count) * (b.T @ a)
    return truncated(space.update(core), count)  # no more: its rank is that already


def _units(layer: Layer) -> tuple[Tensor, tuple[int, int]]:
    """Return [Σ r, k + l], a unit a row in the common bases; and (k, l)."""
    space = layer.space
    rows = []
    for task in layer.tasks:
        root = math.sqrt(abs(task.scale))
        b = math.copysign(root, task.scale) * task.B.to(space.L).T @ space.L
        rows.append(torch.cat([b, root * task.A.to(space.R) @ space.R], dim=1))
    return torch.cat(rows), (space.L.shape[1], space.R.shape[1])


def _clusters(
    units: Tensor, count: int, random: torch.Generator, params: LoRALEGOParams
) -> Tensor:
    """Return the cluster of each unit, the best of several starts."""
    if count == len(units):
        return torch.arange(count)
    starts = range(params.restarts)
    found = [_lloyd(units, count, random, params.max_iter) for _ in starts]
    return min(found, key=lambda start: start[0])[1]


def _lloyd(
    units: Tensor, count: int, random: torch.Generator, steps: int
) -> tuple[float, Tensor]:
    """Return Σ ‖m_i − m̄‖² and the labels of one start; no cluster is empty."""
    centroids = _starts(units, count, random)
    labels = _distances(units, centroids).argmin(1)
    for _ in range(steps):
        labels = _numbered(labels)
        centroids = _means(labels).to(units) @ units
        nearest = _distances(units, centroids).argmin(1)
        if nearest.equal(labels):
            break
        labels = nearest
    labels = _numbered(labels)
    rest = units - (_means(labels).to(units) @ units)[labels]
    return float(rest.square().sum()), labels


def _numbered(labels: Tensor) -> Tensor:
    """Return the same clusters, numbered without a gap."""
    numbered: Tensor = torch.unique(labels, return_inverse=True)[1]
    return numbered


def _means(labels: Tensor) -> Tensor:
    """Return [clusters, units], the matrix that takes each cluster's mean."""
    members = one_hot(labels).T.double()
    return members / members.sum(1, keepdim=True)


def _distances(units: Tensor, centroids: Tensor) -> Tensor:
    """Return [units, centroids] by differences: a unit is at 0 from itself."""
    return torch.cdist(units, centroids, compute_mode="donot_use_mm_for_euclid_dist")


def _starts(units: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return centroids by k-means++ (Arthur & Vassilvitskii 2007).

    Each is drawn with a probability that grows with its distance², so that none is
    drawn twice; fewer where there are fewer different units.
    """
    first = int(torch.randint(len(units), (1,), generator=random))
    chosen = units[first : first + 1]
    while len(chosen) < count:
        far = _distances(units, chosen).amin(1).square()
        if not far.sum():
            break
        drawn = torch.multinomial(far, 1, generator=random)
        chosen = torch.cat([chosen, units[drawn]])
    return chosen
