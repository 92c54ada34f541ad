"""Entity F1: 2·right / (true + predicted) entities of tagged words, over all rows.

An entity is right when its type, first and last word are (Tjong Kim Sang & De Meulder
2003, CoNLL). Tags are BIO, in either reading, or BIOES: as in the ``conlleval`` script
an I or E that continues nothing of its type begins an entity, and B or S always does.
0 where there is no entity at all.
"""

from __future__ import annotations

import numpy as np

from loralab.data.entities import entities
from loralab.evaluation.scores import Answers, Scores, ratio_of
from loralab.registry import Params, register


@register("metric", "entity-f1", answers="tags", better="higher")
def entity_f1(params: Params, answers: Answers) -> Scores:
    """Return micro-averaged F1 over entities, in [0, 1]."""
    counts = []
    for reference, prediction in zip(
        answers.references, answers.predictions, strict=True
    ):
        true, said = entities(reference), entities(prediction)
        counts.append((2 * len(true & said), len(true) + len(said)))
    above, below = np.array(counts, dtype=np.float64).reshape(-1, 2).T
    return ratio_of(above, below)
