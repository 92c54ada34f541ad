"""What the closed-form methods share: a scale, the polar factor.

    polar(X) = U Vᵀ   of the thin SVD X = U Σ Vᵀ                   [k, c] -> [k, c]

For X of full column rank it is the matrix with orthonormal columns that is nearest to X
(Schönemann 1966, the orthogonal Procrustes problem). Where columns are dependent, UVᵀ
is unique only over the directions with σ > 0; the rest would be arbitrary, so it is
left out and the result is a partial isometry.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from loralab.lowrank.update import svd
from loralab.merging.method import Normed


class Scaled(Normed):
    """Base of the schemas of methods whose result is multiplied with a number.

    Attributes:
        scale: What the merged update is multiplied with. The norm rule (``norm:
            mean``) undoes it.
    """

    scale: float = Field(default=1.0, allow_inf_nan=False)


def polar(X: Tensor) -> Tensor:
    """Return the polar factor of X [k, c] over the directions that X has."""
    U, _, V = svd(X)
    return U @ V.T


def joined(U: Tensor, s: Tensor, V: Tensor) -> Tensor:
    """Return polar(U)·diag(s)·polar(V)ᵀ.

    Neither signs nor, among equal s, rotations of the pairs (u_i, v_i) matter.

    Args:
        U: [k, c], singular vectors of several tasks side by side.
        s: [c], their singular values.
        V: [l, c].
    """
    core: Tensor = polar(U) @ torch.diag(s) @ polar(V).T
    return core
