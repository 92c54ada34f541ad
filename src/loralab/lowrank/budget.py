"""Which directions of which modules to keep: one budget over all modules.

The updates of different modules are different weights, so what is lost by truncating
all of them adds up:

    Σ_m ‖ΔW_m − ΔW_m,k(m)‖² = Σ_m Σ_{i>k(m)} σ_mi²

Counted in ranks, the k largest σ² of all modules together are the best k directions
there are (each module's own come in descending order, so they are a legal choice):
taking the largest first is exact. Counted in parameters a direction of module m costs
in + out, and taking the largest σ²/(in + out) first is the greedy solution of a
knapsack. It is the best for the parameters that it spends, but a smaller budget may
keep as much by filling the last gap better; the two differ by less than one direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Spectra = Mapping[str, Sequence[float]]
"""Module -> its singular values, descending."""


@dataclass(frozen=True)
class Budget:
    """How many directions each module keeps.

    Attributes:
        ranks: Module -> rank, 0 for none.
        total_rank: Their sum.
        parameters: Of the factors.
        energy: Share of Σσ² that is kept.
    """

    ranks: dict[str, int]
    total_rank: int
    parameters: int
    energy: float


def _ordered(
    spectra: Spectra, costs: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the module's number and the energy σ² of each direction, best first.

    Best is most energy for its cost. The sort is stable, so equal directions are taken
    in the order of the modules, and within a module in that of its spectrum.
    """
    names = list(spectra)
    counts = [len(spectra[name]) for name in names]
    owner = np.repeat(np.arange(len(names)), counts)
    energy = np.concatenate([np.asarray(spectra[n], dtype=np.float64) for n in names])
    energy = energy**2
    cost = np.repeat([float(costs[name]) for name in names], counts)
    order = np.argsort(-energy / cost, kind="stable")
    return owner[order], energy[order]


def energy_curve(
    spectra: Spectra, costs: Mapping[str, int] | None = None
) -> NDArray[np.float64]:
    """Return the share of the energy that the best k directions keep.

    Args:
        spectra: Singular values by module.
        costs: Parameters of one direction by module; by default all cost the same.

    Returns:
        [K + 1], from 0 for k = 0 to 1 for all K directions; zeros for a zero update.
    """
    _, energy = _ordered(spectra, costs or dict.fromkeys(spectra, 1))
    sums = np.concatenate([[0.0], np.cumsum(energy)])
    return sums / sums[-1] if sums[-1] else sums


def _smallest(
    spectra: Spectra, order: Mapping[str, int], costs: Mapping[str, int], keep: float
) -> Budget:
    """Return the shortest run of best directions, by `order`, that keeps enough."""
    curve = energy_curve(spectra, order)
    count = int(np.searchsorted(curve, keep)) if curve[-1] else 0
    owner, _ = _ordered(spectra, order)
    taken = np.bincount(owner[:count], minlength=len(spectra)).tolist()
    ranks = dict(zip(spectra, taken, strict=True))
    return Budget(
        ranks=ranks,
        total_rank=count,
        parameters=sum(rank * costs[name] for name, rank in ranks.items()),
        energy=float(curve[count]),
    )


def smallest_in_ranks(
    spectra: Spectra, costs: Mapping[str, int], keep: float
) -> Budget:
    """Return the smallest sum of ranks that keeps a share of the energy; it is exact.

    Args:
        spectra: Singular values by module, descending.
        costs: Parameters of one direction, in + out, by module.
        keep: Share of Σσ² over all modules, in (0, 1].
    """
    return _smallest(spectra, dict.fromkeys(spectra, 1), costs, keep)


def smallest_in_parameters(
    spectra: Spectra, costs: Mapping[str, int], keep: float
) -> Budget:
    """Return a small number of parameters that keeps a share of the energy, greedily.

    The arguments are those of `smallest_in_ranks`.
    """
    return _smallest(spectra, costs, costs, keep)


def largest_within(spectra: Spectra, total_rank: int, least: int = 0) -> dict[str, int]:
    """Return the ranks of a given sum that keep the most energy; it is exact.

    Args:
        spectra: Singular values by module, descending.
        total_rank: At most this many directions; fewer where there are no more.
        least: What every module gets first, as far as its spectrum goes.

    Raises:
        ValueError: the budget does not reach for `least` everywhere.
    """
    ranks = {name: min(least, len(spectrum)) for name, spectrum in spectra.items()}
    left = total_rank - sum(ranks.values())
    if left < 0:
        raise ValueError(
            f"{total_rank} ranks are fewer than {least} for each of {len(spectra)}"
        )
    rest = {name: spectrum[ranks[name] :] for name, spectrum in spectra.items()}
    owner, _ = _ordered(rest, dict.fromkeys(rest, 1))
    more = np.bincount(owner[:left], minlength=len(rest))
    return {
        name: ranks[name] + int(extra) for name, extra in zip(rest, more, strict=True)
    }


def largest_within_parameters(
    spectra: Spectra, costs: Mapping[str, int], parameters: int
) -> dict[str, int]:
    """Return ranks that keep the most energy within a number of parameters, greedily.

    The best σ²/(in + out) first; where the next does not fit any more, directions of
    cheaper modules fill the gap. It is exact where all cost the same.

    Args:
        spectra: Singular values by module, descending.
        costs: Parameters of one direction, in + out, by module.
        parameters: At most this many.
    """
    names, ranks, left = list(spectra), dict.fromkeys(spectra, 0), parameters
    full: set[str] = set()  # all of a module's directions cost the same
    for owner in _ordered(spectra, costs)[0].tolist():
        name = names[owner]
        if costs[name] > left:
            full.add(name)
        if name not in full:
            ranks[name] += 1
            left -= costs[name]
    return ranks
