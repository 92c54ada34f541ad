"""How large an exported adapter may be, and which rank that gives each layer.

    exact      every direction that is more than rounding
    rank       at most N directions of each layer
    energy     the fewest parameters that keep a share of Σσ² over all layers
    megabytes  the most of Σσ² that a file of this size holds

The last two choose over all layers at once, by σ²/(in + out) (see `lowrank/budget.py`):
what a layer of little energy leaves free goes to one that needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loralab.errors import ExportError
from loralab.lowrank.budget import (
    Spectra,
    largest_within_parameters,
    smallest_in_parameters,
)

MEGA = 10**6
"""Bytes of a megabyte."""


@dataclass(frozen=True)
class Room:
    """How much of a merged update is written; by default all of it.

    Attributes:
        rank: At most this many directions of each layer.
        energy: Share of Σσ² over all layers that must stay, in (0, 1].
        megabytes: Size of the weights' file, in 10⁶ bytes.

    Raises:
        ExportError: more than one is given, or a value that means nothing.
    """

    rank: int | None = None
    energy: float | None = None
    megabytes: float | None = None

    def __post_init__(self) -> None:
        given = [key for key, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise ExportError(f"{' and '.join(given)} are given", fix="choose one")
        if self.rank is not None and self.rank < 1:
            raise ExportError(f"a rank of {self.rank} holds nothing", fix="rank ≥ 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ExportError(
                f"{self.energy:g} is no share of the energy", fix="0 < energy ≤ 1"
            )
        if self.megabytes is not None and not self.megabytes > 0:
            raise ExportError(f"{self.megabytes:g} MB hold nothing", fix="more than 0")

    def __str__(self) -> str:
        for key, value in vars(self).items():
            if value is not None:
                return f"{key} {value:g}"
        return "exact"

    def ranks(
        self, spectra: Spectra, costs: Mapping[str, int], itemsize: int, overhead: int
    ) -> dict[str, int]:
        """Return each layer's rank.

        Args:
            spectra: Singular values by layer, descending, none of them only rounding.
            costs: in + out by layer.
            itemsize: Bytes of one stored number.
            overhead: Bytes of the file that are no factors.
        """
        if self.energy is not None:
            return smallest_in_parameters(spectra, costs, self.energy).ranks
        if self.megabytes is not None:
            left = int(self.megabytes * MEGA) - overhead
            return largest_within_parameters(spectra, costs, left // itemsize)
        most = self.rank or max(map(len, spectra.values()), default=0)
        return {name: min(most, len(spectrum)) for name, spectrum in spectra.items()}


def energy_of(spectra: Spectra, ranks: Mapping[str, int]) -> float:
    """Return the share of Σσ² that these ranks keep; 1 of a zero update."""
    energies = {name: np.square(spectrum) for name, spectrum in spectra.items()}
    whole = sum(float(energy.sum()) for energy in energies.values())
    kept = sum(float(energy[: ranks[n]].sum()) for n, energy in energies.items())
    return kept / whole if whole else 1.0


def rank_that_keeps(spectra: Spectra, share: float) -> int:
    """Return the smallest rank, the same for every layer, that keeps a share of Σσ²."""
    longest = max(map(len, spectra.values()), default=0)
    by_rank = np.zeros(longest)
    for spectrum in spectra.values():
        by_rank[: len(spectrum)] += np.square(spectrum)
    sums = np.cumsum(by_rank)
    if not longest or not sums[-1]:
        return 0
    return int(np.searchsorted(sums, share * sums[-1])) + 1
