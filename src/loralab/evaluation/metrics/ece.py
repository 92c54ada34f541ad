"""Expected calibration error (Guo et al. 2017, eq. 3): how far confidence is off.

Rows fall into equal-width bins by the probability of their predicted class;

    ECE = Σ_b |Σ confidence − Σ right| / n,

the sums over the rows of bin b. With few rows in a bin it is too high even for a
calibrated model, and resampling raises it further: an interval may lie above the value.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from loralab.evaluation.scores import Answers, Floats, Scores
from loralab.registry import Params, register


class EceParams(Params):
    """How fine confidence is told apart."""

    bins: int = Field(15, ge=2, le=1000)


@register(
    "metric", "ece", EceParams, answers="class", better="lower", needs="probabilities"
)
def ece(params: EceParams, answers: Answers) -> Scores:
    """Return the expected calibration error, in [0, 1]."""
    from scipy.sparse import csr_array

    confidence_E = np.asarray(answers.probabilities, dtype=np.float64)
    right_E = np.asarray(answers.references) == np.asarray(answers.predictions)
    edges = np.linspace(0, 1, params.bins + 1)[1:-1]
    bin_E = np.digitize(confidence_E, edges, right=True)  # bins are (low, high]
    count = len(confidence_E)
    columns = bin_E[:, None] + params.bins * np.arange(3)
    data = np.stack([np.ones(count), confidence_E, right_E], axis=1)
    starts = np.arange(0, 3 * count + 1, 3)
    sums = csr_array(
        (data.ravel(), columns.ravel(), starts), shape=(count, 3 * params.bins)
    )

    def value(totals: Floats) -> Floats:
        rows, confidence, right = np.split(totals, 3, axis=-1)
        return np.asarray(np.abs(confidence - right).sum(-1) / rows.sum(-1))

    return Scores(sums, value)
