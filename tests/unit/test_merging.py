"""Layers, and the norm rule over all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tests.every_layer import saved
from tests.merging import Held, dense, dense_update, drawn

from loralab.errors import AdapterError, MergeError
from loralab.lowrank.factors import Factors, concatenate
from loralab.lowrank.files import AdapterFolder
from loralab.lowrank.settings import CONFIG
from loralab.lowrank.update import frobenius
from loralab.merging.merge import layers, merge
from loralab.merging.method import method
from loralab.merging.state.fit import check_fit


def test_a_task_that_leaves_a_layer_alone_counts_as_zero() -> None:
    one, two = drawn(3, {"a": (6, 5), "b": (4, 5)}), drawn(2, {"a": (6, 5)})
    merged = merge(method("average"), [one, two])
    expected = {
        "a": (dense(one.factors("a")) + dense(two.factors("a"))) / 2,
        "b": dense(one.factors("b")) / 2,
    }
    for name, ΔW in expected.items():
        update = merged[name]
        torch.testing.assert_close(dense_update(update), ΔW)


def test_the_norm_rule_is_over_all_layers() -> None:
    sources = [drawn(3, {"a": (6, 5), "b": (4, 5)}, seed) for seed in range(3)]
    merged = merge(method("average", norm="mean"), sources)
    mean = sum(
        math.hypot(*(float(dense(s.factors(m)).norm()) for m in "ab")) for s in sources
    ) / len(sources)
    assert math.hypot(*map(frobenius, merged.values())) == pytest.approx(mean)


def test_what_rounding_leaves_of_tasks_that_cancel_is_not_scaled_up() -> None:
    one, two = (drawn(3, {"a": (6, 5)}, seed) for seed in range(2))
    both = Held({"a": concatenate(one.factors("a"), two.factors("a"))})
    merged = merge(method("cat", norm="mean"), [one, two, both], (1, 1, -1))
    assert frobenius(merged["a"]) < 1e-12


def test_adapters_of_two_bases_are_refused() -> None:
    with pytest.raises(AdapterError, match=r"a is \(6, 4\)"):
        list(layers([drawn(3, {"a": (6, 5)}), drawn(3, {"a": (6, 4)})]))


def test_weights_multiply_the_updates() -> None:
    source = drawn(3, {"a": (6, 5)})
    (layer,) = layers([source], [0.5])
    torch.testing.assert_close(dense(layer.tasks[0]), dense(source.factors("a")) / 2)


def test_random_numbers_are_a_layers_own() -> None:
    one, two = layers([Held({"a": _zero(), "b": _zero()})])
    again = next(layers([Held({"a": _zero()})]))
    first = torch.rand(3, generator=one.generator(1))
    assert not first.equal(torch.rand(3, generator=two.generator(1)))
    assert first.equal(torch.rand(3, generator=again.generator(1)))


def _zero() -> Factors:
    return Factors(torch.zeros(1, 3), torch.zeros(2, 1), 1.0)


def test_an_adapter_that_names_no_base_is_taken_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    named, bare = (saved_adapter(tmp_path / n, seed=i) for i, n in enumerate("ab"))
    rename(named, base_model_name_or_path="org/base")
    rename(bare, base_model_name_or_path=None)
    check_fit([AdapterFolder.open(named), AdapterFolder.open(bare)])
    assert "b does not say which base it belongs to" in caplog.text
    assert "a does not say" not in caplog.text


def test_adapters_of_bases_of_two_names_are_refused_unless_forced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (saved_adapter(tmp_path / n, seed=i) for i, n in enumerate("ab"))
    rename(one, base_model_name_or_path="org/one")
    rename(two, base_model_name_or_path="org/two")
    sources = [AdapterFolder.open(one), AdapterFolder.open(two)]
    with pytest.raises(MergeError, match=r"org/two and org/one"):
        check_fit(sources)
    check_fit(sources, force=True)
    assert "org/two and org/one (forced)" in caplog.text


def saved_adapter(folder: Path, seed: int) -> Path:
    saved(folder, seed=seed)
    return folder


def rename(folder: Path, **changes: str | None) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
