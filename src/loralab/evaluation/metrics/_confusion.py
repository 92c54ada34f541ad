"""Metrics of a confusion matrix, from its margins.

Macro-F1 and Matthews correlation need of a confusion matrix only its diagonal and its
two margins, so a row gives 3·C numbers of which at most three are 1, not C² of which
one is: the totals of R draws stay small with a thousand classes.

Shape suffixes: E rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from loralab.evaluation.scores import Answers, Floats, Scores


def margin_scores(
    answers: Answers, value: Callable[[Floats, Floats, Floats], Floats]
) -> Scores:
    """Return the scores of a metric of (right, true, predicted) counts of each class.

    Args:
        answers: Of form ``class``.
        value: From three arrays [..., C] to [...].
    """
    from scipy.sparse import csr_array

    true_E = np.asarray(answers.references, dtype=np.int64)
    said_E = np.asarray(answers.predictions, dtype=np.int64)
    count, classes = len(true_E), answers.classes
    right_E = (true_E == said_E).astype(np.float64)
    ones_E = np.ones(count)
    columns = np.stack([true_E, classes + true_E, 2 * classes + said_E], axis=1)
    data = np.stack([right_E, ones_E, ones_E], axis=1)
    starts = np.arange(0, 3 * count + 1, 3)
    sums = csr_array(
        (data.ravel(), columns.ravel(), starts), shape=(count, 3 * classes)
    )
    sums.eliminate_zeros()

    def of_totals(totals: Floats) -> Floats:
        right, true, said = np.split(totals, 3, axis=-1)
        return value(right, true, said)

    return Scores(sums, of_totals)
