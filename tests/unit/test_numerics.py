"""What is decided for a device, as a function of what it can do."""

import pytest

from loralab.config import compose
from loralab.errors import ModelError
from loralab.models import numerics
from loralab.models.numerics import check_trains, decide
from loralab.models.stored import check_device
from loralab.runs import machine
from loralab.training.plan import SIZES, Remedy, rooms
from loralab.training.prepare import prepare


@pytest.mark.parametrize(
    ("device", "fast", "dtype"),
    [
        ("cpu", "the CPU (amx_bf16)", "bf16"),
        ("cpu", "", "fp32"),
        ("cuda", "the GPU", "bf16"),
        ("cuda", "", "fp32"),  # before Ampere
        ("mps", "", "fp32"),
    ],
)
def test_the_best_dtype_is_bf16_where_it_is_fast(device, fast, dtype):
    found = decide(device, "best", fast)
    assert (found.device, found.dtype) == (device, dtype)
    assert (fast or device) in found.reason
    for asked in ("fp32", "bf16"):
        assert decide(device, asked, fast).dtype == asked


def test_fp16_answers_on_gpus_and_trains_nowhere(monkeypatch):
    with pytest.raises(ModelError, match="not computed on a CPU"):
        decide("cpu", "fp16", "")
    for device in ("cuda", "mps"):
        found = decide(device, "fp16", "")
        assert found.dtype == "fp16"
        with pytest.raises(ModelError, match="loss scaling"):
            check_trains(found)
    check_trains(decide("mps", "best", ""))
    # the whole way, on a machine that says it has such a GPU
    monkeypatch.setattr(numerics, "_available", lambda _: True)
    config = compose("sms-spam", ["model.device=mps", "model.dtype=fp16"])
    with pytest.raises(ModelError, match="loss scaling"):
        prepare(config)


def test_on_mps_bitsandbytes_is_refused_and_affine_codes_are_named():
    for name, ability, fix in (
        ("nf4", "nf4", "affine-int4"),
        ("nf4-dq", "nf4", "affine-int4"),
        ("int8", "int8", "affine-int8"),
    ):
        with pytest.raises(ModelError, match=f"{name} is not run on mps") as caught:
            check_device(name, ability, "mps")
        assert f"model.storage={fix}" in caught.value.fix
        for device in ("cpu", "cuda"):
            check_device(name, ability, device)
    check_device("affine-int4", "affine", "mps")
    assert {probe.works for probe in machine.quantized("mps")} == {False}
    assert "affine-int4" in machine.quantized("mps")[0].fix


def test_a_plan_says_what_fits_where_and_what_would():
    remedies = [Remedy("batch", 15 * 10**9, False), Remedy("nf4", 5 * 10**9, True)]
    found = rooms(20 * 10**9, remedies)
    assert [room.gigabytes for room in found] == list(SIZES)
    told = [(room.fits, room.change, room.peak // 10**9) for room in found]
    assert told == [
        (False, "nf4", 5), (False, "nf4", 5), (True, None, 20), (True, None, 20),
    ]  # fmt: skip
    assert [r.change for r in rooms(23 * 10**9, remedies)] == [
        "nf4",
        "nf4",
        "batch",
        None,
    ]
    assert not rooms(20 * 10**9, [])[0].fits
