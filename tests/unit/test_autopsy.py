"""The rank autopsy: spectra of an adapter, the budget, what truncation costs."""

import json
import shutil
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.tiny import tiny

from loralab.adapters.autopsy import autopsy, truncated, write_truncated
from loralab.cli.autopsy_view import autopsy_lines, autopsy_table, truncation_table
from loralab.errors import AdapterError, LoralabError
from loralab.evaluation.autopsy import evaluate_truncated
from loralab.lowrank.factors import Factors
from loralab.lowrank.files import read_adapter, write_adapter
from loralab.models.quiet import quiet_libraries
from loralab.reporting.figures import Spectrum, save, spectra_map

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
IDS = torch.arange(5, 21).reshape(2, 8)
PATTERNS = {
    "rank_pattern": {"layer.0.attention.self.value": 2, "output.dense": 5},
    "alpha_pattern": {r".*\.0\..*\.value": 8, "output.dense": 2.5},
}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return tiny("bert", tmp_path_factory.mktemp("bert") / "bert")


def base(bert):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    with quiet_libraries():
        return AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)


def made(bert, folder, **changes):
    """Write an adapter of PEFT's with a head, B not zero; return the live model."""
    from peft import LoraConfig, get_peft_model

    settings = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["query", "value", "attention.output.dense"],
        "task_type": "SEQ_CLS",
        **PATTERNS,
    }
    torch.manual_seed(0)
    with quiet_libraries():
        model = get_peft_model(base(bert), LoraConfig(**{**settings, **changes}))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    with quiet_libraries():
        model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(scope="module")
def adapter(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    return folder, made(bert, folder)


def plain(bert, folder):
    from peft import PeftModel

    with quiet_libraries():
        return PeftModel.from_pretrained(base(bert), folder).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def dense(layer):
    return layer.get_delta_weight("default").detach().double()


@pytest.mark.parametrize("rslora", [False, True])
def test_factors_are_what_peft_makes_of_the_folder(bert, tmp_path, rslora):
    model = made(bert, tmp_path, use_rslora=rslora)
    stored = read_adapter(tmp_path)
    assert len(stored.factors) == 6
    assert {f.rank for f in stored.factors.values()} == {2, 4, 5}
    for name, factors in stored.factors.items():
        layer = model.base_model.model.get_submodule(name)
        ours = factors.scale * factors.B.double() @ factors.A.double()
        torch.testing.assert_close(ours, dense(layer), rtol=1e-5, atol=1e-7)
    heads = {name.rpartition(".")[2] for name in stored.rest}
    assert heads == {"weight", "bias"} and len(stored.rest) == 2


def test_the_autopsy_tells_of_each_module_what_the_dense_update_says(adapter):
    folder, model = adapter
    found = autopsy(folder, keep=0.8)
    assert found.total_rank == sum(module.rank for module in found.modules)
    for module in found.modules:
        update = dense(model.base_model.model.get_submodule(module.name))
        whole = torch.linalg.svdvals(update)[: len(module.sigma)]
        assert module.shape == tuple(update.shape)
        assert module.sigma == pytest.approx(whole.tolist(), rel=1e-5)
        assert module.norm == pytest.approx(update.norm().item(), rel=1e-6)
        assert module.stable_rank <= module.effective_rank <= module.rank
    assert len(found.curve) == found.total_rank + 1
    assert found.by_rank.energy >= 0.8 > found.curve[found.by_rank.total_rank - 1]
    assert found.by_rank.energy == found.curve[found.by_rank.total_rank]
    assert found.by_parameters.parameters <= found.by_rank.parameters
    assert json.loads(json.dumps(found.as_dict()))["keep"] == 0.8


def test_the_truncated_adapter_loads_in_plain_peft_and_is_the_nearest(
    bert, adapter, tmp_path
):
    folder, model = adapter
    (folder / "loralab.json").write_text("{}")
    found = autopsy(folder, keep=0.5)
    assert 0 in found.by_rank.ranks.values()  # a module that keeps nothing is left out
    write_truncated(found, tmp_path / "cut")
    assert (tmp_path / "cut" / "loralab.json").read_text() == "{}"
    loaded = plain(bert, tmp_path / "cut")
    cut, errors = truncated(read_adapter(folder), found.by_rank.ranks)
    lost = 0.0
    for module in found.modules:
        was = dense(model.base_model.model.get_submodule(module.name))
        layer = loaded.base_model.model.get_submodule(module.name)
        rank = found.by_rank.ranks[module.name]
        assert hasattr(layer, "lora_A") == bool(rank)
        now = dense(layer) if rank else torch.zeros_like(was)
        error = (was - now).norm().item()
        lost += error**2
        assert errors[module.name] == pytest.approx(error / module.norm, abs=1e-5)
        assert cut.factors[module.name].rank == rank
    energy = sum(module.norm**2 for module in found.modules)
    assert 1 - lost / energy == pytest.approx(found.by_rank.energy, abs=1e-6)
    again = autopsy(tmp_path / "cut", keep=1.0)
    assert again.parameters == found.by_rank.parameters
    whole = load_file(folder / WEIGHTS)
    for name, tensor in load_file(tmp_path / "cut" / WEIGHTS).items():
        if "classifier" in name:
            assert torch.equal(tensor, whole[name])


def test_all_of_the_energy_is_the_same_function(bert, adapter, tmp_path):
    folder, model = adapter
    write_truncated(autopsy(folder, keep=1.0), tmp_path / "same")
    assert torch.equal(logits(plain(bert, tmp_path / "same")), logits(model))


def test_the_truncated_adapter_never_replaces_the_whole_one(adapter):
    folder, _ = adapter
    with pytest.raises(AdapterError, match="not replaced"):
        write_truncated(autopsy(folder), folder)


def test_an_adapter_that_was_not_trained_has_no_spectrum(bert, adapter, tmp_path):
    shutil.copytree(adapter[0], tmp_path / "zero")
    file = tmp_path / "zero" / WEIGHTS
    tensors = load_file(file)
    zero = {k: v * 0 if "lora_B" in k else v for k, v in tensors.items()}
    save_file(zero, file)
    with pytest.raises(AdapterError, match="zero"):
        autopsy(tmp_path / "zero")
    with pytest.raises(AdapterError, match="no share"):
        autopsy(adapter[0], keep=90)


def rewrite(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def retensor(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors, next(k for k in sorted(tensors) if "lora_A" in k))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / WEIGHTS)


def first_nan(tensors, name):
    tensors[name][0, 0] = torch.nan


BREAK = {
    "no config": (lambda f: (f / CONFIG).unlink(), "cannot be read"),
    "half a config": (lambda f: (f / CONFIG).write_text('{"r": '), "cannot be read"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "cannot be read"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "not there"),
    "half the weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:500]),
        "not safetensors",
    ),
    "another method": (lambda f: rewrite(f, peft_type="ADALORA"), "kind ADALORA"),
    "DoRA": (lambda f: rewrite(f, use_dora=True), "use_dora"),
    "pissa": (lambda f: rewrite(f, init_lora_weights="pissa_niter_4"), "pissa"),
    "other rank": (lambda f: rewrite(f, r=3), "says 3"),
    "no alpha": (lambda f: rewrite(f, lora_alpha=None), "no rank or alpha"),
    "zero alpha": (lambda f: rewrite(f, lora_alpha=0), "the scale of"),
    "bad pattern": (lambda f: rewrite(f, rank_pattern={"(": 2}), "regular expression"),
    "no B": (
        lambda f: retensor(f, lambda t, n: t.pop(n.replace("_A", "_B"))),
        "lora_B.weight is missing",
    ),
    "NaN": (lambda f: retensor(f, first_nan), "NaN"),
    "another shape": (
        lambda f: retensor(f, lambda t, n: t.update({n: t[n][:1]})),
        "make no rank",
    ),
    "no LoRA at all": (
        lambda f: retensor(f, lambda t, n: [t.pop(k) for k in list(t) if "lora_" in k]),
        "has no lora_A",
    ),
    "an embedding": (
        lambda f: retensor(
            f, lambda t, n: t.update({"base_model.model.e.lora_embedding_A": t[n] * 1})
        ),
        "lora_embedding_B is missing",
    ),
}


@pytest.mark.parametrize("how", BREAK)
def test_broken_folders_are_told_and_where(how, adapter, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(adapter[0], broken)
    damage, said = BREAK[how]
    damage(broken)
    with pytest.raises(LoralabError, match=said) as caught:
        autopsy(broken)
    assert isinstance(caught.value, AdapterError) and caught.value.where


def test_the_truncated_adapter_of_a_run_is_measured_beside_the_whole(minilm_run):
    found = autopsy(minilm_run, keep=0.6)
    result = evaluate_truncated(minilm_run, found)
    whole = minilm_run.evaluations()["test"]["metrics"]
    assert set(result["metrics"]) == set(whole)
    for metric, arms in result["metrics"].items():
        assert set(arms) == {"truncated", "whole", "difference"}
        assert arms["whole"]["value"] == pytest.approx(
            whole[metric]["adapter"]["value"], abs=1e-6
        )
        gap = arms["truncated"]["value"] - arms["whole"]["value"]
        assert arms["difference"]["value"] == pytest.approx(gap)
    assert result["metrics"]["cross_entropy"]["difference"]["value"] != 0
    assert result["total_rank"] == found.by_rank.total_rank < result["whole_rank"]
    all_kept = evaluate_truncated(minilm_run, autopsy(minilm_run, keep=1.0))
    same = all_kept["metrics"]["cross_entropy"]["difference"]["value"]
    assert same == pytest.approx(0, abs=1e-6)
    other = replace(found, folder=minilm_run.path)
    with pytest.raises(AdapterError, match="not of this run"):
        evaluate_truncated(minilm_run, other)
    assert "whole" in printed(truncation_table(result))


def printed(table):
    stream = StringIO()
    Console(file=stream, width=200).print(table)
    return stream.getvalue()


def test_the_terminal_shows_each_module_and_both_budgets(adapter):
    found = autopsy(adapter[0], keep=0.5)
    shown = printed(autopsy_table(found))
    for module in found.modules:
        (line,) = [row for row in shown.splitlines() if module.name in row]
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells[2] == str(module.rank)
        assert cells[3] == f"{module.effective_rank:.2f}"
        assert cells[-2] == str(found.by_rank.ranks[module.name])
    configured, ranks, parameters = autopsy_lines(found)
    assert f"{found.total_rank} ranks over 6 modules" in configured
    assert f"{found.by_rank.total_rank} ranks" in ranks and "keep nothing" in ranks
    assert f"{found.by_parameters.parameters:,} parameters" in parameters


def spectra_of(found):
    return [
        Spectrum(module.name, module.sigma, found.by_rank.ranks[module.name])
        for module in found.modules
    ]


def test_the_figure_marks_what_is_kept_and_is_always_the_same(adapter, tmp_path):
    found = autopsy(adapter[0])
    figure = spectra_map(spectra_of(found), found.curve, found.keep)
    first = save(figure, tmp_path / "one", "f")
    second = save(
        spectra_map(spectra_of(found), found.curve, found.keep), tmp_path / "two", "f"
    )
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes()
    divide = figure.axes[0].lines[-1].get_xdata()
    assert list(divide[::2]) == list(found.by_rank.ranks.values())
    curve = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_array_equal(curve, found.curve)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts[0].startswith(f"{found.by_rank.total_rank} of {found.total_rank} ")


@pytest.mark.parametrize(
    ("spectra", "curve", "keep", "said"),
    [
        ([], [0, 1], 0.9, "no spectrum"),
        ([Spectrum("a", [1.0, 2.0], 1)], [0, 1], 0.9, "descend"),
        ([Spectrum("a", [1.0], 2)], [0, 1], 0.9, "2 of 1"),
        ([Spectrum("a", [0.0], 0)], [0, 1], 0.9, "zero"),
        ([Spectrum("a", [1.0], 1)], [0, 1, 0.5], 0.9, "rise"),
        ([Spectrum("a", [1.0], 1)], [0, 1], 90, "share"),
        ([Spectrum("a", [2.0, 1.0], 2)], [0, 1], 0.9, "ends before"),
    ],
)
def test_a_figure_of_nothing_sensible_is_refused(spectra, curve, keep, said):
    with pytest.raises(ValueError, match=said):
        spectra_map(spectra, curve, keep)


def test_factors_of_rank_zero_are_not_written(adapter, tmp_path):
    stored = read_adapter(adapter[0])
    none = {
        name: Factors(f.A[:0], f.B[:, :0], f.scale)
        for name, f in stored.factors.items()
    }
    with pytest.raises(AdapterError, match="no direction"):
        write_adapter(tmp_path / "none", replace(stored, factors=none))
    assert not (tmp_path / "none").exists()
