"""What has been merged after each task is what a merge of those tasks gives."""

from __future__ import annotations

import pytest
import torch
from tests.merging import dense_update, drawn

from loralab.lowrank.factors import Factors
from loralab.lowrank.update import Update, spanned, total
from loralab.merging.merge import merge
from loralab.merging.method import Normed, Step, method
from loralab.merging.sequence import after_each
from loralab.registry import _entries, register

SHAPES = {"a": (6, 5), "b": (4, 5)}


@pytest.fixture
def summed():
    """A continual method: the sum, with the norm rule if asked."""

    @register("merge method", "summed", Normed, continual=True)
    def summed(params: Normed, merged: Update | None, new: Factors, step: Step):
        one = spanned(new.A.to(step.dtype), new.B.to(step.dtype), new.scale)
        assert step.count == (0 if merged is None else step.count)
        return one if merged is None else total([merged, one])

    yield "summed"
    del _entries["merge method", "summed"]


@pytest.mark.parametrize("norm", ["none", "mean"])
@pytest.mark.parametrize("name", ["average", "summed"])
def test_every_row_is_the_merge_of_the_tasks_so_far(name, norm, summed) -> None:
    sources = [drawn(2, SHAPES, 1), drawn(3, {"a": (6, 5)}, 2), drawn(2, SHAPES, 3)]
    chosen = _method(name, norm)
    rows = list(after_each(chosen, sources))
    assert len(rows) == 3
    for count, row in enumerate(rows, 1):
        expected = merge(chosen, sources[:count])
        for module, update in expected.items():
            torch.testing.assert_close(
                dense_update(row[module]), dense_update(update), rtol=0, atol=1e-12
            )


def _method(name: str, norm: str):
    if name == "average":
        return method(name, norm=norm)
    from loralab.merging.method import Method

    entry = _entries["merge method", name]
    return Method(entry, Normed(norm=norm))
