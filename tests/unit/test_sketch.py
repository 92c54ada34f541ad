"""Sketches of inputs against the second moment itself; RegMean against its equation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tests.merging import (
    Held,
    dense,
    dense_update,
    drawn,
    drawn_factors,
    drawn_layer,
    drawn_sketch,
)
from tests.tiny import tiny
from torch import Tensor

from loralab.adapters.layers import lora_layers
from loralab.adapters.sketching import input_sketches
from loralab.errors import AdapterError
from loralab.lowrank.factors import Factors
from loralab.lowrank.sketch import (
    ADAPTER,
    INPUTS,
    Sketch,
    Sketched,
    Sketcher,
    write_sketches,
)
from loralab.merging.layer import Layer
from loralab.merging.merge import layers, merge
from loralab.merging.method import method
from loralab.merging.sequence import after_each
from loralab.models.loaded import LoadedModel
from loralab.models.quiet import quiet_libraries

FEW = settings(max_examples=25, deadline=None)


def inputs(count: int, width: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    decay = 0.7 ** torch.arange(width, dtype=torch.float64)
    mixed = torch.randn(width, width, generator=random, dtype=torch.float64)
    X = torch.randn(count, width, generator=random, dtype=torch.float64)
    return X * decay @ mixed


def moment(sketch: Sketch, alpha: float = 1.0) -> Tensor:
    X, D = sketch.shrunk(alpha, torch.float64)
    return X @ X.T + torch.diag(D)


def sketched(X: Tensor, rank: int, piece: int = 7) -> Sketch:
    made = Sketcher(rank)
    for part in X.split(piece):
        made.add(part)
    return made.sketch()


# --- the sketch


@FEW
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 12), st.integers(1, 20))
def test_sketch_is_below_the_moment_and_near_it(count, width, rank, piece):
    X = inputs(count, width)
    G, found = X.T @ X / count, sketched(X, rank, piece)
    missed = torch.linalg.eigvalsh(G - found.S @ found.S.T)
    scale = 1e-10 * float(G.trace())
    assert float(missed.min()) >= -scale
    assert float(missed.max()) <= found.bound + scale
    # Ghashami et al. 2016: no more than the whole energy over k + 1
    assert found.bound <= float(G.trace()) / (min(rank, width) + 1) + scale
    torch.testing.assert_close(found.diagonal, G.diagonal())
    torch.testing.assert_close(moment(found).diagonal(), G.diagonal())
    assert found.S.shape[1] <= rank
    assert found.tokens == count


@pytest.mark.parametrize(("count", "rank"), [(8, 8), (60, 12), (200, 40)])
def test_sketch_that_is_large_enough_is_exact(count, rank):
    X = inputs(count, 12)
    found = sketched(X, rank)
    torch.testing.assert_close(found.S @ found.S.T, X.T @ X / count)
    assert found.bound == pytest.approx(0, abs=1e-12)


def test_sketch_that_is_too_small_is_not():
    X = inputs(60, 12)
    assert sketched(X, 3).bound > 1e-3


def test_shrinking_is_of_the_off_diagonal_alone():
    found = drawn_sketch(6, 0)
    G, diagonal = found.S @ found.S.T, torch.diag(found.diagonal)
    for alpha in (0.0, 0.6, 1.0):
        expected = alpha * (G - torch.diag(G.diagonal())) + diagonal
        torch.testing.assert_close(moment(found, alpha), expected)


def test_sketch_of_other_coordinates():
    found = drawn_sketch(6, 0)
    V = torch.linalg.qr(torch.randn(6, 4, generator=torch.Generator()).double()).Q
    inside = found.within(V)
    torch.testing.assert_close(inside.S @ inside.S.T, V.T @ found.S @ found.S.T @ V)
    torch.testing.assert_close(
        moment(inside).diagonal(), (V.T @ moment(found) @ V).diagonal()
    )


def test_nothing_to_sketch():
    with pytest.raises(ValueError, match="no inputs"):
        Sketcher(2).sketch()


# --- RegMean


def literal(layer: Layer, base: Tensor, alpha: float) -> Tensor:
    """Return RegMean of whole weights, eq. 2 of the paper, minus the base."""
    top, bottom = torch.zeros_like(base), 0
    for task, sketch in zip(layer.tasks, layer.inputs, strict=True):
        ridge = 1e-6 * float(sketch.diagonal.mean())
        G = moment(sketch, alpha) + ridge * torch.eye(base.shape[1])
        top = top + (base + dense(task)) @ G
        bottom = bottom + G
    return top @ torch.linalg.inv(bottom) - base


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(7, 9), (9, 5)])
def test_regmean_is_that_of_whole_weights(alpha, shape):
    layer = drawn_layer(shape, (3, 2, 4))
    base = torch.randn(shape, generator=torch.Generator().manual_seed(9)).double()
    found = method("regmean", alpha=alpha).merged(layer)
    assert found.rank <= 9
    expected = literal(layer, base, alpha)
    torch.testing.assert_close(dense_update(found), expected, rtol=1e-8, atol=1e-8)


def test_regmean_of_an_adapter_with_itself_is_itself():
    task, sketch = drawn_factors((7, 6), 3, 0), drawn_sketch(6, 0)
    for count in (1, 3):
        layer = Layer("w", (task,) * count, (sketch,) * count)
        found = dense_update(method("regmean").merged(layer))
        torch.testing.assert_close(found, dense(task), rtol=1e-10, atol=1e-10)


def test_regmean_comes_nearer_to_the_tasks_outputs_than_the_average():
    tasks = [drawn_factors((8, 6), 2, seed) for seed in range(3)]
    X = [inputs(90, 6, seed) for seed in range(3)]
    layer = Layer("w", tuple(tasks), tuple(sketched(x, 6) for x in X))

    def distance(name: str, **params: float) -> float:
        W = dense_update(method(name, **params).merged(layer))
        off = [x @ (W - dense(t)).T for x, t in zip(X, tasks, strict=True)]
        return sum(float(o.square().sum()) for o in off)

    best, shrunk = distance("regmean", alpha=1.0), distance("regmean", alpha=0.5)
    assert best < shrunk < distance("average")


def test_an_input_that_no_task_has_gets_the_mean():
    tasks = tuple(drawn_factors((4, 5), 2, seed) for seed in range(2))
    X = [inputs(30, 5, seed) for seed in range(2)]
    for x in X:
        x[:, 3] = 0
    same = [sketched(x / x.square().mean().sqrt(), 5) for x in X]
    found = dense_update(method("regmean").merged(Layer("w", tasks, tuple(same))))
    mean = sum(dense(task)[:, 3] for task in tasks) / 2
    torch.testing.assert_close(found[:, 3], mean)


def test_a_layer_without_inputs_gets_the_mean():
    tasks = tuple(drawn_factors((4, 5), 2, seed) for seed in range(2))
    nothing = sketched(torch.zeros(30, 5), 3)
    found = dense_update(method("regmean").merged(Layer("w", tasks, (nothing,) * 2)))
    torch.testing.assert_close(found, sum(map(dense, tasks)) / 2)


def test_a_missing_sketch_is_named():
    first, second = drawn(2, {"a": (6, 5)}, 0), drawn(2, {"a": (6, 5)}, 1)
    sources = [replace(first, sketches={"a": drawn_sketch(5, 0)}), second]
    with pytest.raises(AdapterError, match="drawn-1 has no sketch") as error:
        merge(method("regmean"), sources)
    assert "loralab sketch RUN" in error.value.fix


def test_a_task_that_leaves_the_layer_alone_needs_no_sketch():
    both = drawn(2, {"a": (6, 5), "b": (4, 5)}, 0)
    one = drawn(2, {"a": (6, 5)}, 1)
    sketch = {"a": drawn_sketch(5, 0), "b": drawn_sketch(5, 1)}
    sources = [replace(both, sketches=sketch), replace(one, sketches=sketch)]
    sources[1] = replace(one, sketches={"a": sketch["a"]})
    merged = merge(method("regmean"), sources)
    torch.testing.assert_close(dense_update(merged["b"]), dense(both.factors("b")))


def test_first_tasks_that_leave_a_layer_alone_leave_it():
    one, two = drawn(2, {"a": (6, 5)}, 0), drawn(2, {"a": (6, 5), "b": (4, 5)}, 1)
    sketch = {"a": drawn_sketch(5, 0), "b": drawn_sketch(5, 1)}
    sources = [replace(one, sketches={"a": sketch["a"]}), replace(two, sketches=sketch)]
    first, both = after_each(method("regmean"), sources)
    assert float(dense_update(first["b"]).norm()) == 0
    torch.testing.assert_close(dense_update(both["b"]), dense(two.factors("b")))


# --- of a model


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A tiny BERT under a LoRA whose B is not zero, and two padded batches."""
    from peft import LoraConfig, get_peft_model

    from loralab.config import ModelConfig
    from loralab.models.base import load_base

    folder = tiny("bert", tmp_path_factory.mktemp("bert") / "bert")
    loaded = load_base(
        ModelConfig(path=str(folder), dtype="fp32"),
        "sequence-classification",
        ["a", "b"],
    )
    targets = ["query", "key", "output.dense"]
    config = LoraConfig(r=2, target_modules=targets, task_type="SEQ_CLS")
    with quiet_libraries():
        model = get_peft_model(loaded.model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    random = torch.Generator().manual_seed(0)
    batches = []
    for rows, length in ((3, 9), (2, 6)):
        mask = torch.ones(rows, length, dtype=torch.int64)
        mask[0, 4:] = 0
        ids = torch.randint(10, 200, (rows, length), generator=random)
        rest = {"labels": torch.zeros(rows).long(), "example": torch.arange(rows)}
        batches.append({"input_ids": ids, "attention_mask": mask, **rest})
    return loaded, model, batches


def dense_moments(loaded: LoadedModel, model, batches) -> dict[str, Tensor]:
    """Return XᵀX / N of the real tokens, by hooks of our own."""
    kept: dict[str, list[Tensor]] = {}
    mask: list[Tensor] = []
    handles = [
        layer.register_forward_hook(
            lambda _, args, out, name=name: kept.setdefault(name, []).append(
                args[0][mask[-1].bool()].double()
            )
        )
        for name, layer in lora_layers(model).items()
    ]
    with torch.no_grad():
        for batch in batches:
            mask.append(batch["attention_mask"])
            model.eval()(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            )
    for handle in handles:
        handle.remove()
    moments = {}
    for name, parts in kept.items():
        X = torch.cat(parts)
        moments[name] = X.T @ X / len(X)
    return moments


def test_sketch_of_a_model_is_its_second_moment(adapted):
    loaded, model, batches = adapted
    expected = dense_moments(loaded, model, batches)
    found, shared = input_sketches(
        model, lora_layers(model), loaded, lambda: iter(batches), 48
    )
    assert set(found) | set(shared) == set(expected)
    assert {k.rsplit(".", 1)[1]: v.rsplit(".", 1)[1] for k, v in shared.items()} == {
        "key": "query"
    }
    for name, G in expected.items():
        sketch = found[shared.get(name, name)]
        assert sketch.tokens == 3 * 9 - 5 + 2 * 6 - 2
        torch.testing.assert_close(moment(sketch), G, rtol=1e-5, atol=1e-6)
    with model.disable_adapter():
        plain = dense_moments(loaded, model, batches)
    last = list(expected)[-1]
    assert not plain[last].allclose(expected[last], rtol=1e-2)


# --- the file


@pytest.fixture
def folder(tmp_path) -> Path:
    save_file({"x": torch.zeros(2)}, tmp_path / ADAPTER)
    sketches = {"a.q": drawn_sketch(5, 0), "b": drawn_sketch(4, 1)}
    write_sketches(tmp_path, sketches, {"a.k": "a.q"}, rows=9, rank=3, base="f00d")
    return tmp_path


def test_file_gives_back_what_was_written(folder):
    found = Sketched.open(folder)
    assert found.facts | {"modules": 0, "adapter": 0} == {
        "format": 1, "rank": 3, "rows": 9, "base": "f00d", "modules": 0, "adapter": 0,
    }  # fmt: skip
    for name, drawn_as in (("a.q", (5, 0)), ("a.k", (5, 0)), ("b", (4, 1))):
        sketch, expected = found.read(name), drawn_sketch(*drawn_as)
        assert sketch.S.equal(expected.S.float())
        assert sketch.diagonal.equal(expected.diagonal.float())
        assert (sketch.tokens, sketch.bound) == (expected.tokens, expected.bound)
    assert found.read("c") is None
    assert len(load_file(folder / INPUTS)) == 4  # a.k has none of its own
    assert [path.name for path in sorted(folder.iterdir())] == [ADAPTER, INPUTS]


def test_no_file_is_no_sketch(tmp_path):
    assert Sketched.open(tmp_path) is None


def test_sketch_of_other_weights_is_refused(folder):
    save_file({"x": torch.ones(2)}, folder / ADAPTER)
    with pytest.raises(AdapterError, match="other weights"):
        Sketched.open(folder)


def _later(file: Path) -> None:
    facts = {"format": 2, "adapter": ""}
    save_file({"x": torch.zeros(1)}, file, metadata={"loralab": json.dumps(facts)})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.write_bytes(b"no safetensors"), "not safetensors"),
        (lambda file: save_file({"x": torch.zeros(1)}, file), "no sketch"),
        (lambda file: file.write_bytes(file.read_bytes()[:40]), "not safetensors"),
        (_later, "format 2 is later"),
    ],
)
def test_broken_file_is_refused(folder, damage, said):
    damage(folder / INPUTS)
    with pytest.raises(AdapterError, match=said):
        Sketched.open(folder)


def test_sketch_reaches_the_layer(folder):
    class Stored(Held):
        def inputs(self, module: str) -> Sketch | None:
            found = Sketched.open(folder)
            return found.read(module) if found else None

    factors = {"a.q": Factors(torch.ones(1, 5), torch.ones(2, 1), 1.0)}
    (layer,) = layers([Stored(factors)], inputs=True)
    assert layer.inputs[0].tokens == 50
    assert layer.sources == ("drawn",)
    (layer,) = layers([Stored(factors)])
    assert layer.inputs == (None,)


def test_sketches_are_read_for_methods_that_need_them_alone():
    assert method("regmean").reads_inputs
    assert method("core-space", inner="regmean").reads_inputs
    assert not method("core-space").reads_inputs
    assert not method("ties").reads_inputs
