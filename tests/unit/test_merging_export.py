"""A merged update on disk: plain PEFT, of the promised error and size, or nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.every_layer import KINDS, Every, delta, loaded, ours, saved
from tests.merging import dense_update
from tests.unit.test_stream import limited

from loralab.errors import AdapterError, ExportError, MergeError
from loralab.lowrank.files import WEIGHTS, AdapterFolder
from loralab.lowrank.settings import CONFIG, NOTE
from loralab.merging.export.export import export
from loralab.merging.export.heads import head_index, read_head
from loralab.merging.export.room import Room, rank_that_keeps
from loralab.merging.merge import merge, merged_layers
from loralab.merging.method import method

AVERAGE = method("average")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """Three tasks of different ranks, the last one on fewer layers."""
    folder = tmp_path_factory.mktemp("adapters")
    saved(folder / "one", seed=1, rank_pattern={"two": 4, "gpt": 1})
    saved(folder / "two", seed=2, r=3, use_rslora=True)
    saved(folder / "three", seed=3, target_modules=["embed", "linear"])
    return [AdapterFolder.open(folder / name) for name in ("one", "two", "three")]


def exported(folder, adapters, rule=AVERAGE, **options):
    return export(folder, merged_layers(rule, adapters), adapters, rule, **options)


def whole(update):
    return dense_update(update).double()


@pytest.mark.parametrize("norm", ["none", "mean"])
def test_plain_peft_loads_the_merged_update_exactly(norm, adapters, tmp_path):
    rule = method("average", norm=norm)
    found = exported(tmp_path / "m", adapters, rule)
    expected = merge(rule, adapters)
    model = loaded(tmp_path / "m")
    assert sorted(expected) == sorted(KINDS)
    for module, update in expected.items():
        torch.testing.assert_close(
            delta(model, module), whole(update), rtol=1e-5, atol=1e-6
        )
        opened = AdapterFolder.open(tmp_path / "m").factors(module)
        torch.testing.assert_close(ours(opened), whole(update), rtol=1e-5, atol=1e-6)
    assert (found.scale != 1) == (norm == "mean")
    assert found.error == pytest.approx(0) and found.energy == 1
    assert 0 < found.relative_rounding < 1e-6
    assert not found.warnings


FRESH = """
import json, sys, torch, warnings
warnings.simplefilter("error")
from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from peft import get_peft_model
from tests.every_layer import Every
folder, state, out = sys.argv[1:]
base = Every()
base.load_state_dict(torch.load(state, weights_only=True))
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = get_peft_model(base, PeftConfig.from_pretrained(folder))
result = set_peft_model_state_dict(model, load_peft_weights(folder))
missing = [key for key in result.missing_keys if "lora_" in key]
assert not missing and not result.unexpected_keys, result
torch.save(model(torch.arange(11)[None]), out)
"""


def test_a_fresh_process_gives_the_logits_of_the_update_applied_by_hand(
    adapters, tmp_path
):
    exported(tmp_path / "m", adapters)
    torch.manual_seed(0)
    base = Every()
    state, out = tmp_path / "state.pt", tmp_path / "out.pt"
    torch.save(base.state_dict(), state)
    code = [sys.executable, "-c", FRESH, str(tmp_path / "m"), str(state), str(out)]
    subprocess.run(code, check=True, timeout=120)
    updates = merge(AVERAGE, adapters)
    with torch.no_grad():
        base.embed.weight += whole(updates["embed"]).T.float()
        expected = base(torch.arange(11)[None])
        untouched = Every()
        untouched.load_state_dict(torch.load(state, weights_only=True))
        assert not torch.allclose(untouched(torch.arange(11)[None]), expected)
    got = torch.load(out, weights_only=True)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "room", [Room(rank=1), Room(rank=2), Room(energy=0.6)], ids=str
)
@pytest.mark.parametrize("norm", ["none", "mean"])
def test_the_error_is_that_of_the_dense_difference(room, norm, adapters, tmp_path):
    rule = method("average", norm=norm)
    found = exported(tmp_path / "m", adapters, rule, room=room)
    opened, total, norms = AdapterFolder.open(tmp_path / "m"), 0.0, 0.0
    for layer in found.layers:
        ΔW = whole(merge(rule, adapters)[layer.name])
        held = opened.shapes.get(layer.name)
        cut = ours(opened.factors(layer.name)) if held else torch.zeros_like(ΔW)
        error = (ΔW - cut).norm().item()
        best = torch.linalg.svdvals(ΔW)[layer.rank :].norm().item()
        assert layer.error == pytest.approx(error, rel=1e-5, abs=1e-6)
        assert layer.error == pytest.approx(best, rel=1e-6, abs=1e-9)
        assert layer.relative_error == pytest.approx(error / ΔW.norm().item(), abs=1e-6)
        total, norms = math.hypot(total, error), math.hypot(norms, ΔW.norm().item())
        if room.rank:
            assert layer.rank <= room.rank
    assert found.error == pytest.approx(total, rel=1e-5)
    assert found.relative_error == pytest.approx(total / norms, rel=1e-5)
    assert found.energy == pytest.approx(1 - (total / norms) ** 2, rel=1e-5)
    assert found.energy >= (room.energy or 0)


def test_a_task_keeps_what_the_written_directions_span(adapters, tmp_path):
    found = exported(tmp_path / "m", adapters, room=Room(rank=1))
    opened = AdapterFolder.open(tmp_path / "m")
    for adapter in adapters:
        inside = all_of_it = 0.0
        for module in adapter.shapes:
            ΔW = ours(adapter.factors(module))
            cut = opened.factors(module)
            U, V = (torch.linalg.qr(x.double()).Q for x in (cut.B, cut.A.T))
            inside += (U.T @ ΔW @ V).norm().item() ** 2
            all_of_it += ΔW.norm().item() ** 2
        share = found.kept[adapter.name]
        assert share == pytest.approx(inside / all_of_it, rel=1e-4)
        assert 0 < share < 1


def test_an_exact_export_keeps_all_of_every_task(tmp_path):
    for seed, rank in enumerate([2, 3]):
        saved(
            tmp_path / str(rank), seed=seed, r=rank, target_modules=["embed", "linear"]
        )
    adapters = [AdapterFolder.open(tmp_path / str(rank)) for rank in (2, 3)]
    found = exported(tmp_path / "m", adapters)
    assert set(found.ranks.values()) == {5}  # no layer is too small for the sum
    assert found.kept == pytest.approx({"2": 1.0, "3": 1.0})


def test_a_budget_is_kept_to_the_byte_and_used(adapters, tmp_path):
    everything = exported(tmp_path / "all", adapters).bytes
    found = {
        share: exported(
            tmp_path / str(share),
            adapters,
            room=Room(megabytes=share * everything / 1e6),
        )
        for share in (0.8, 0.9, 1.0)
    }
    for share, made in found.items():
        size = (made.folder / WEIGHTS).stat().st_size
        assert made.bytes == size <= share * everything
        assert size > share * everything - 4 * 26  # a further smallest direction
    assert found[0.8].energy < found[0.9].energy < found[1.0].energy == 1
    with pytest.raises(ExportError, match="holds no direction"):
        exported(tmp_path / "none", adapters, room=Room(megabytes=0.0001))
    assert not (tmp_path / "none").exists()


def test_a_global_choice_beats_the_same_rank_everywhere(adapters, tmp_path):
    even = exported(tmp_path / "even", adapters, room=Room(rank=2))
    room = Room(megabytes=even.bytes / 1e6)
    assert exported(tmp_path / "free", adapters, room=room).energy > even.energy


def test_a_rank_without_place_for_the_tasks_is_said_loudly(adapters, tmp_path, caplog):
    found = exported(tmp_path / "m", adapters, room=Room(rank=1))
    warning = found.warnings[0]
    assert all(one in caplog.text for one in found.warnings)
    assert "no place for the tasks" in warning
    spectra = {
        name: torch.linalg.svdvals(update.C).tolist()
        for name, update in merge(AVERAGE, adapters).items()
    }
    enough = rank_that_keeps(spectra, 0.9)
    assert f"Rank {enough} of every layer" in warning
    more = exported(tmp_path / "more", adapters, room=Room(rank=enough))
    less = exported(tmp_path / "less", adapters, room=Room(rank=enough - 1))
    assert less.energy < 0.9 <= more.energy and not more.warnings


def test_a_quiet_task_that_the_rank_drowns_is_named(tmp_path):
    saved(tmp_path / "loud", seed=1, lora_alpha=300)
    saved(tmp_path / "quiet", seed=2)
    adapters = [AdapterFolder.open(tmp_path / name) for name in ("loud", "quiet")]
    found = exported(tmp_path / "m", adapters, room=Room(rank=2))
    assert found.energy > 0.9 and found.kept["loud"] > 0.9 > 0.5 > found.kept["quiet"]
    (warning,) = found.warnings
    assert "of quiet's energy" in warning
    assert not exported(tmp_path / "all", adapters).warnings


def test_a_task_that_changes_nothing_is_named(adapters, tmp_path):
    saved(tmp_path / "never", seed=2)
    tensors = load_file(tmp_path / "never" / WEIGHTS)
    zero = {name: 0 * tensor for name, tensor in tensors.items()}
    save_file(zero, tmp_path / "never" / WEIGHTS, {"format": "pt"})
    found = exported(
        tmp_path / "m", [adapters[0], AdapterFolder.open(tmp_path / "never")]
    )
    assert found.warnings == (
        "never changes nothing: its update is zero in every layer",
    )


def test_only_rounding_is_not_written(adapters, tmp_path):
    """An adapter and its own copy need the rank of one, not of two."""
    copy = AdapterFolder.open(adapters[0].path, "again")
    found = exported(tmp_path / "m", [adapters[0], copy])
    alone = {name: module.rank for name, module in adapters[0].modules.items()}
    assert found.ranks == alone
    assert found.bytes <= (adapters[0].path / WEIGHTS).stat().st_size + 512


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "bf16", "fp16"])
def test_what_a_dtype_changes_is_measured(dtype, adapters, tmp_path):
    found = exported(tmp_path / "m", adapters, dtype=dtype, room=Room(rank=2))
    opened, changed = AdapterFolder.open(tmp_path / "m"), 0.0
    exact = exported(tmp_path / "e", adapters, dtype="fp64", room=Room(rank=2))
    reference = AdapterFolder.open(tmp_path / "e")
    for layer in found.layers:
        difference = ours(opened.factors(layer.name)) - ours(
            reference.factors(layer.name)
        )
        lost = difference.norm().item()
        assert layer.rounding == pytest.approx(lost, rel=1e-3, abs=1e-12)
        changed = math.hypot(changed, lost)
    assert found.rounding == pytest.approx(changed, rel=1e-3, abs=1e-12)
    assert exact.rounding == 0 and found.dtype == dtype
    names = {"fp64": torch.float64, "fp32": torch.float32}
    names |= {"bf16": torch.bfloat16, "fp16": torch.float16}
    assert {t.dtype for t in load_file(tmp_path / "m" / WEIGHTS).values()} == {
        names[dtype]
    }


def test_numbers_beyond_a_dtype_are_refused(tmp_path):
    saved(tmp_path / "a", lora_alpha=10**14)
    with pytest.raises(ExportError, match=r"beyond torch\.float16"):
        exported(tmp_path / "m", [AdapterFolder.open(tmp_path / "a")], dtype="fp16")
    with pytest.raises(ExportError, match="no dtype int4"):
        exported(tmp_path / "m", [AdapterFolder.open(tmp_path / "a")], dtype="int4")
    assert not (tmp_path / "m").exists()


def with_heads(folder, seeds, **options):
    for number, seed in enumerate(seeds):
        torch.manual_seed(seed)
        saved(folder / f"t{number}", seed=seed, modules_to_save=["head"], **options)
    return [AdapterFolder.open(folder / f"t{n}") for n in range(len(seeds))]


def test_heads_of_different_tasks_stand_beside(tmp_path):
    adapters = with_heads(tmp_path, [1, 2])
    (adapters[0].path / NOTE).write_text(json.dumps({"task": "one"}))
    (adapters[1].path / NOTE).write_text(json.dumps({"task": "two"}))
    found = exported(tmp_path / "m", adapters)
    assert found.heads == ("t0", "t1") and found.head is None
    config = json.loads((tmp_path / "m" / CONFIG).read_text())
    assert config["modules_to_save"] is None
    assert not AdapterFolder.open(tmp_path / "m").rest()
    for adapter in adapters:
        head = read_head(tmp_path / "m", adapter.name)
        assert head.keys() == adapter.rest().keys() and head
        assert all(torch.equal(head[k], v) for k, v in adapter.rest().items())
    index = head_index(tmp_path / "m")
    assert index["t1"]["modules_to_save"] == ["head"]
    note = (tmp_path / "m" / "heads" / index["t1"]["note"]).read_text()
    assert json.loads(note) == {"task": "two"}
    assert NOTE not in found.left_out and not (tmp_path / "m" / NOTE).exists()
    with pytest.raises(AdapterError, match="no head of t9"):
        read_head(tmp_path / "m", "t9")
    again = [AdapterFolder.open(tmp_path / "m"), adapters[0]]
    told = exported(tmp_path / "again", again).warnings
    assert any("m is a merge with heads of its own" in one for one in told)


def test_a_head_that_all_have_or_that_is_chosen_is_the_adapters(tmp_path):
    adapters = with_heads(tmp_path, [1, 2])
    twin = AdapterFolder.open(adapters[0].path, "twin")
    for made, beside in (
        (exported(tmp_path / "same", [adapters[0], twin]), ()),
        (exported(tmp_path / "chosen", adapters, head="t0"), ("t0", "t1")),
    ):
        assert made.head == "t0" and made.heads == beside
        rest = AdapterFolder.open(made.folder).rest()
        assert rest.keys() == adapters[0].rest().keys()
        assert all(torch.equal(rest[k], v) for k, v in adapters[0].rest().items())
        model = loaded(made.folder)
        head = model.base_model.model.head.modules_to_save["default"]
        assert torch.equal(head.weight, rest["base_model.model.head.weight"])
    with pytest.raises(MergeError, match="no task t9"):
        exported(tmp_path / "m", adapters, head="t9")
    run = AdapterFolder.open(adapters[0].path, "trec-6-0123456789")
    found = exported(tmp_path / "by-name", [run, adapters[1]], head="trec-6")
    assert found.head == "trec-6-0123456789"


def test_a_head_that_is_not_finite_is_not_written(tmp_path):
    adapters = with_heads(tmp_path, [1, 2])
    file = adapters[0].path / WEIGHTS
    tensors = load_file(file)
    tensors["base_model.model.head.weight"][0, 0] = torch.inf
    save_file(tensors, file)
    broken = AdapterFolder.open(adapters[0].path)
    for taken in ([broken], [broken, adapters[1]]):  # inside, and beside
        with pytest.raises(AdapterError, match="holds NaN or infinite"):
            exported(tmp_path / "m", taken)
    with pytest.raises(AdapterError, match="holds NaN"):
        broken.rest()


def test_a_task_called_as_the_index_keeps_its_note(tmp_path):
    for adapter in with_heads(tmp_path, [1, 2]):
        (adapter.path / NOTE).write_text(json.dumps({"task": adapter.name}))
    (tmp_path / "t0").rename(tmp_path / "index")
    folders = [tmp_path / name for name in ("index", "t1")]
    exported(tmp_path / "m", [AdapterFolder.open(folder) for folder in folders])
    entry = head_index(tmp_path / "m")["index"]
    note = json.loads((tmp_path / "m" / "heads" / entry["note"]).read_text())
    assert note == {"task": "t0"}


def test_what_tells_of_a_merge_is_not_of_a_merge_of_it(adapters, tmp_path):
    exported(tmp_path / "m", adapters)
    (tmp_path / "m" / "tuning.json").write_text("{}")
    again = [AdapterFolder.open(tmp_path / "m"), adapters[0]]
    assert not exported(tmp_path / "again", again).left_out
    assert not exported(tmp_path / "alone", again[:1]).left_out
    assert not (tmp_path / "alone" / "tuning.json").exists()


def test_the_record_explains_the_folder(adapters, tmp_path):
    rule = method("average", norm="mean")
    layers = merged_layers(rule, adapters, [1.0, 2.0, 0.5])
    found = export(
        tmp_path / "m",
        layers,
        adapters,
        rule,
        weights=[1.0, 2.0, 0.5],
        room=Room(energy=0.9),
        dtype="bf16",
    )
    record = json.loads((tmp_path / "m" / "merge.json").read_text())
    assert record["format"] == 1 and record["method"] == "average"
    assert record["params"] == {"norm": "mean"} and record["dtype"] == "bf16"
    assert record["room"] == {"rank": None, "energy": 0.9, "megabytes": None}
    assert record["scale"] == found.scale and record["error"] == found.error
    for entry, adapter, weight in zip(
        record["adapters"], adapters, [1.0, 2.0, 0.5], strict=True
    ):
        assert (entry["name"], entry["digest"]) == (adapter.name, adapter.digest)
        assert entry["weight"] == weight and "fingerprint" in entry["base"]
    ranks = {layer["name"]: layer["rank"] for layer in record["layers"]}
    assert ranks == found.ranks


def test_what_stands_beside_all_alike_travels(tmp_path):
    for seed, name in enumerate(["a", "b"]):
        saved(tmp_path / name, seed=seed)
        (tmp_path / name / "tokenizer.json").write_text("{}")
        (tmp_path / name / "template.jinja").write_text(name)
    adapters = [AdapterFolder.open(tmp_path / name) for name in "ab"]
    found = exported(tmp_path / "m", adapters)
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "m" / "template.jinja").exists()
    assert "template.jinja" in found.left_out


def test_what_is_no_merged_adapter_is_never_replaced(adapters, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with pytest.raises(ExportError, match="not replaced"):
        exported(tmp_path / "mine", adapters)
    with pytest.raises(ExportError, match="not replaced"):
        exported(adapters[0].path, adapters)
    assert (tmp_path / "mine" / "thesis.tex").exists()
    exported(tmp_path / "m", adapters, room=Room(rank=1))
    again = exported(tmp_path / "m", adapters)
    assert AdapterFolder.open(tmp_path / "m").shapes and again.energy == 1
    merged = AdapterFolder.open(tmp_path / "m")
    with pytest.raises(ExportError, match="would replace"):
        exported(tmp_path / "m", [merged, adapters[0]])


def test_a_full_disk_leaves_nothing(adapters, tmp_path):
    with limited(2000), pytest.raises(ExportError, match="cannot be written"):
        exported(tmp_path / "m", adapters)
    assert not list(tmp_path.iterdir())


def test_a_merge_that_breaks_leaves_the_old_adapter(adapters, tmp_path):
    before = exported(tmp_path / "m", adapters)

    def breaks():
        yield from list(merged_layers(AVERAGE, adapters))[:3]
        raise AdapterError("broken")

    with pytest.raises(AdapterError, match="broken"):
        export(tmp_path / "m", breaks(), adapters, AVERAGE)
    assert (tmp_path / "m" / WEIGHTS).stat().st_size == before.bytes
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rank": 4, "energy": 0.5}, "rank and energy are given"),
        ({"rank": 0}, "rank of 0"),
        ({"energy": 1.5}, "no share"),
        ({"energy": float("nan")}, "no share"),
        ({"megabytes": 0}, "hold nothing"),
    ],
)
def test_a_room_that_means_nothing_is_refused(given, said):
    with pytest.raises(ExportError, match=said):
        Room(**given)


def test_two_tasks_of_one_name_are_refused(adapters, tmp_path):
    with pytest.raises(MergeError, match="two tasks are called one"):
        exported(tmp_path / "m", [adapters[0], adapters[0]])
