"""Affine codes, and the linear module that stands on them."""

import copy
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from loralab.errors import QuantizationError
from loralab.quantization.affine import (
    dequantize,
    pack,
    packed_width,
    predicted_bytes,
    quantize,
    unpack,
)
from loralab.quantization.linear import AffineLinear, quantize_modules

BITS = (2, 3, 4, 8)
few = settings(max_examples=30, deadline=None)


@st.composite
def matrices(draw):
    """A matrix of mixed scales and offsets, its bits and group."""
    group = draw(st.sampled_from([1, 3, 8, 32]))
    rows, groups = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    noise = torch.randn(rows, groups, group, generator=generator)
    size = 10.0 ** torch.randint(-6, 4, (rows, groups, 1), generator=generator)
    offset = draw(st.sampled_from([0.0, 1.0, -30.0]))
    weight = (noise + offset) * size
    weight[0, 0] = draw(st.sampled_from([0.0, 2.5, -1e-42]))  # a flat group
    return weight.flatten(1), draw(st.sampled_from(BITS)), group


def squared(weight, packed):
    lost = weight.double() - dequantize(packed).double()
    return lost.reshape(len(lost), -1, packed.group).square().sum(-1)


@given(
    st.sampled_from(BITS), st.integers(1, 4), st.integers(1, 41), st.integers(0, 999)
)
@few
def test_packing_is_undone_by_unpacking(bits, rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(
        0, 2**bits, (rows, count), generator=generator, dtype=torch.uint8
    )
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_width(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes)


def test_three_bits_are_dense():
    codes = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8)
    value = sum(int(c) << (3 * i) for i, c in enumerate(codes[0]))
    assert pack(codes, 3).tolist() == [list(value.to_bytes(3, "little"))]
    assert packed_width(9, 3) == 6


@given(matrices())
@few
def test_minmax_errs_by_half_a_scale_at_most(drawn):
    weight, bits, group = drawn
    packed = quantize(weight, bits, group)
    lost = (weight - dequantize(packed)).abs().reshape(len(weight), -1, group)
    rounding = 4 * torch.finfo(torch.float32).eps * weight.abs().max()
    assert (lost <= packed.scales.unsqueeze(-1) * 0.5001 + rounding).all()
    assert (packed.scales > 0).all()
    assert packed.zeros.isfinite().all()


@given(matrices(), st.sampled_from([torch.float32, torch.float16]))
@few
def test_mse_is_never_worse_than_minmax(drawn, dtype):
    weight, bits, group = drawn
    plain = squared(weight, quantize(weight, bits, group, "minmax", dtype))
    fitted = squared(weight, quantize(weight, bits, group, "mse", dtype))
    assert (fitted <= plain * (1 + 1e-5) + 1e-30).all()


@pytest.mark.parametrize("clipping", ["minmax", "mse"])
@pytest.mark.parametrize("std", [0.004, 0.001, 1e-5])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_scale_may_be_a_subnormal_of_fp16(bits, std, clipping):
    drawn = std * torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    for weight in (drawn, drawn + 2 * std):
        wide = squared(weight, quantize(weight, bits, 32, clipping))
        packed = quantize(weight, bits, 32, clipping, torch.float16)
        assert (packed.scales > 0).all()
        assert squared(weight, packed).sum().sqrt() < 1.5 * wide.sum().sqrt()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_that_is_subnormal_in_fp32_too_is_not_taken(dtype):
    weight = 1e-38 * torch.linspace(-1, 1, 32)[None]
    packed = quantize(weight, 8, 32, dtype=dtype)
    assert packed.scales.item() == 1
    assert float(dequantize(packed).abs().max()) <= 1e-38


@pytest.mark.parametrize("bits", BITS)
def test_mse_is_better_where_there_is_an_outlier(bits):
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    weight[:, ::32] *= 3
    plain = squared(weight, quantize(weight, bits)).sum()
    fitted = squared(weight, quantize(weight, bits, clipping="mse")).sum()
    assert fitted < 0.97 * plain


@pytest.mark.parametrize("clipping", ["minmax", "mse"])
def test_a_matrix_on_the_grid_comes_back(clipping):
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (4, 64), generator=generator).double()
    codes[:, ::32], codes[:, 1::32] = 0, 15
    weight = (codes - 6.25) * 0.03
    again = dequantize(quantize(weight, 4, 32, clipping, torch.float64))
    torch.testing.assert_close(again, weight, rtol=0, atol=1e-14)


@given(matrices(), st.sampled_from([torch.float32, torch.float16, torch.float64]))
@few
def test_bytes_are_predicted_exactly(drawn, dtype):
    weight, bits, group = drawn
    packed = quantize(weight, bits, group, dtype=dtype)
    stored = {"codes": packed.codes, "scales": packed.scales, "zeros": packed.zeros}
    measured = sum(t.numel() * t.element_size() for t in stored.values())
    assert predicted_bytes(tuple(weight.shape), bits, group, dtype) == measured
    assert packed.nbytes == measured


@pytest.mark.parametrize(
    ("weight", "bits", "group", "clipping", "said"),
    [
        (torch.zeros(2, 48), 4, 32, "minmax", "48 is no multiple of the group 32"),
        (torch.zeros(2, 32), 5, 32, "minmax", "5 bits"),
        (torch.zeros(2, 32), 4, 0, "minmax", "group 0"),
        (torch.zeros(2, 32), 4, 32, "mean", "nearest|known"),
        (torch.full((2, 32), torch.nan), 4, 32, "minmax", "NaN"),
    ],
)
def test_what_cannot_be_held_is_refused(weight, bits, group, clipping, said):
    with pytest.raises(QuantizationError, match=said):
        quantize(weight, bits, group, clipping)


def linear(dtype=torch.float32, bias=True, inputs=64, outputs=24):
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


def gradients(module, x, autocast=None):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=bool(autocast)):
        y = module(x)
    (y.float().sin().sum() if autocast else y.sin().sum()).backward()
    bias = None if module.bias is None else module.bias.grad
    return y.detach(), x.grad, bias


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64,), (5, 64), (2, 3, 64)])
def test_it_computes_as_a_linear_of_its_weight(bias, autocast, shape):
    made = AffineLinear.from_linear(linear(bias=bias), 4)
    plain = copy.deepcopy(made.to_linear())  # a bias of its own
    x = torch.randn(shape)
    for ours, theirs in zip(
        gradients(made, x, autocast), gradients(plain, x, autocast), strict=True
    ):
        if theirs is None:
            assert ours is None
            continue
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_gradients_are_right_in_fp64():
    made = AffineLinear.from_linear(linear(torch.float64), 3, dtype=torch.float64)
    x = torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))
    assert torch.autograd.gradgradcheck(made, (x,))


def test_neither_the_float_weight_nor_the_input_is_kept():
    made = AffineLinear.from_linear(linear(inputs=1024, outputs=256), 4)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t) or t, lambda t: t
    ):
        made(torch.randn(8, 1024, requires_grad=True))
    assert sum(t.nbytes for t in kept) == made.packed.nbytes
    held = sum(t.nbytes for t in [*made.parameters(), *made.buffers()])
    assert held == predicted_bytes((256, 1024), 4, 32) + 256 * 4


def test_a_state_dict_is_all_there_is():
    made = AffineLinear.from_linear(linear(), 3)
    other = AffineLinear.from_linear(nn.Linear(64, 24), 3)
    assert set(made.state_dict()) == {"codes", "scales", "zeros", "bias"}
    other.load_state_dict(made.state_dict())
    x = torch.randn(2, 64)
    assert torch.equal(other(x), made(x))


def test_a_cast_of_the_model_spares_scales_and_zeros():
    made = AffineLinear.from_linear(linear(), 4)
    before = made.weight
    half = copy.deepcopy(made).to(torch.bfloat16)
    assert torch.equal(half.weight, before)
    assert half.bias.dtype == torch.bfloat16
    out = half(torch.randn(2, 64, dtype=torch.bfloat16))
    assert out.dtype == torch.bfloat16


def test_conv1d_is_quantized_along_its_inputs():
    torch.manual_seed(0)
    conv = Conv1D(24, 64)  # 64 inputs, weight 64 × 24
    made = AffineLinear.from_linear(conv, 8)
    x = torch.randn(3, 64)
    assert (made.in_features, made.out_features) == (64, 24)
    with torch.no_grad():
        assert float((made(x) - conv(x)).norm() / conv(x).norm()) < 0.01


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Sequential(nn.Linear(32, 8)))


def test_modules_are_replaced_and_accounted_for():
    base, x = model(), torch.randn(4, 64)
    weight, before = base[0].weight.detach(), base(x).detach()
    floats = [weakref.ref(m) for m in (base[0], base[2][0], base[2][0].weight)]
    report = quantize_modules(base, ["0", "2.0"], 8)
    assert [ref() for ref in floats] == [None] * 3  # let go without a collector
    made = {n: m for n, m in base.named_modules() if isinstance(m, AffineLinear)}
    assert set(report) == set(made) == {"0", "2.0"}
    for name, line in report.items():
        assert line.bytes_before == 4 * made[name].out_features * made[name].in_features
        assert line.bytes_after == predicted_bytes(line.shape, 8, 32)
    lost = (weight - made["0"].weight).norm() / weight.norm()
    assert report["0"].relative_error == pytest.approx(float(lost))
    with torch.no_grad():
        assert 0 < float((base(x) - before).norm() / before.norm()) < 0.02


@pytest.mark.parametrize(
    ("names", "group", "said"),
    [
        (["0", "2.1"], 32, "no module '2.1'"),
        (["0", "1"], 32, "ReLU has no float matrix"),
        (["0", "0"], 32, "named twice"),
        (["0", "2.0"], 64, "2.0: in_features 32"),
    ],
)
def test_a_refused_model_is_left_as_it_was(names, group, said):
    base = model()
    with pytest.raises(QuantizationError, match=said):
        quantize_modules(base, names, 4, group)
    assert not any(isinstance(m, AffineLinear) for m in base.modules())


def test_quantized_modules_and_tied_weights_are_refused():
    base = model()
    quantize_modules(base, ["0"], 4)
    with pytest.raises(QuantizationError, match="AffineLinear has no float matrix"):
        quantize_modules(base, ["0"], 4)
    tied = nn.ModuleDict({"embed": nn.Embedding(10, 32), "head": nn.Linear(32, 10)})
    tied["head"].weight = tied["embed"].weight
    with pytest.raises(QuantizationError, match=r"also embed\.weight"):
        quantize_modules(tied, ["head"], 4)


def test_a_linear_made_back_shares_the_bias():
    made = AffineLinear.from_linear(linear(), 4)
    back, x = made.to_linear(), torch.randn(2, 64)
    assert back.bias is made.bias
    assert not back.weight.requires_grad
    assert torch.equal(back(x), functional.linear(x, made.weight, made.bias))
