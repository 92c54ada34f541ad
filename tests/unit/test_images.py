"""Decoding, geometry and augmentation of images."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    DeiTImageProcessorPil,
    ViTImageProcessorPil,
)

from loralab.data import images
from loralab.data import pixels as room
from loralab.data.images import decode, digest, encode, identify, image_of, read
from loralab.data.pixels import Augmentation, Pixels, load_pixels, processing_of
from loralab.errors import DataError, ModelError

DRAW = np.random.default_rng(0)


def noise(height=9, width=7, channels=3):
    return DRAW.integers(0, 256, (height, width, channels), dtype=np.uint8)


def saved(pixels, kind="PNG", mode=None, **options):
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if mode:
        image = image.convert(mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "PPM", "BMP", "TIFF"])
def test_a_lossless_format_gives_the_pixels(kind):
    told = {"lossless": True} if kind == "WEBP" else {}
    pixels = noise()
    assert (decode(saved(pixels, kind, **told)) == pixels).all()


def test_the_same_picture_in_two_formats_is_one_image():
    pixels = noise()
    assert digest(decode(saved(pixels))) == digest(decode(saved(pixels, "BMP")))
    assert digest(pixels) != digest(pixels[::-1])
    assert digest(pixels) != digest(pixels.transpose(1, 0, 2)), "the shape counts"
    grey = noise(channels=1)
    assert decode(saved(grey)).shape == (9, 7, 1)
    assert digest(grey) == digest(grey.repeat(3, axis=2))


@given(st.integers(1, 5), st.integers(1, 5), st.booleans(), st.binary(max_size=75))
@settings(max_examples=20)
def test_pixels_survive_the_plainest_formats(height, width, grey, content):
    count = height * width * (1 if grey else 3)
    flat = np.resize(np.frombuffer(content or b"\0", np.uint8), count)
    pixels = flat.reshape(height, width) if grey else flat.reshape(height, width, 3)
    assert (decode(encode(pixels)).squeeze() == pixels.squeeze()).all()


def test_transparency_palettes_and_sixteen_bits_become_plain_pixels():
    pixels = noise()
    assert (decode(saved(pixels, mode="RGBA")) == pixels).all()
    assert decode(saved(pixels, mode="P")).shape == (9, 7, 3)
    deep = Image.fromarray(np.array([[0, 255, 65535]], np.uint16))
    file = io.BytesIO()
    deep.save(file, "PNG")
    assert decode(file.getvalue())[..., 0].tolist() == [[0, 0, 255]]


def test_a_photograph_is_turned_upright():
    pixels = noise(4, 6)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    assert (decode(file.getvalue()) == np.rot90(pixels, -1)).all()


WHOLE = saved(noise(64, 64))
BROKEN = {
    "empty": (b"", "0 bytes"),
    "cut off": (WHOLE[: len(WHOLE) // 2], "broken or cut off"),
    "a byte changed": (WHOLE[:200] + b"\1\2\3" + WHOLE[203:], "broken or cut off"),
    "text": (b"no image at all", "broken, or none of"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "none of"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_whole_image_is_refused(case, tmp_path):
    data, why = BROKEN[case]
    with pytest.raises(ValueError, match=why):
        decode(data)
    file = tmp_path / "cat.png"
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"cat\.png"):
        read(image_of(str(file)))


@pytest.mark.parametrize("limit", [100, 1500])  # above twice it, and above it
def test_an_image_of_too_many_pixels_is_refused(limit, monkeypatch):
    data = saved(noise(50, 50))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ValueError, match=f"more than {limit:,} pixels"):
        decode(data)


def test_what_stands_for_an_image():
    pixels = noise()
    for given_ in (saved(pixels), pixels, Image.fromarray(pixels)):
        assert (read(image_of(given_)) == pixels).all()
    assert (read(image_of({"bytes": saved(pixels), "path": "x.png"})) == pixels).all()
    for wrong in ("", None, 3, {}, noise().astype(float), noise(channels=3)[..., :2]):
        with pytest.raises(ValueError, match="image is"):
            image_of(wrong)
    with pytest.raises(ValueError, match="No such file"):
        read(image_of("none.png"))


PROCESSORS = {
    "vit": ViTImageProcessorPil(size={"height": 20, "width": 12}),
    "deit": DeiTImageProcessorPil(
        size={"height": 24, "width": 24}, crop_size={"height": 20, "width": 20}
    ),
    "clip": CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ),
    "bit": BitImageProcessorPil(
        size={"shortest_edge": 21}, crop_size={"height": 16, "width": 24}, resample=3
    ),
    "plain": ViTImageProcessorPil(
        size={"height": 8, "width": 8}, do_normalize=False, do_rescale=False
    ),
}
for processor in PROCESSORS.values():
    processor.patch_size = 4


def row(given_, **more):
    return {"image": image_of(given_), "label": "a", **more}


def checked(pixels, **more):
    return row(pixels, pixels=digest(pixels), size=list(pixels.shape[:2]), **more)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("known", [False, True])
def test_a_batch_is_what_the_models_own_processor_makes(name, known, cache):
    processor = PROCESSORS[name]
    drawn = [noise(h, w) for h, w in [(40, 30), (17, 50), (9, 9), (20, 12), (64, 3)]]
    rows = [(checked if known else row)(one) for one in drawn]
    found = load_pixels(rows, processing_of(processor), Augmentation())
    assert found.fitted
    ours = found.batch(range(len(rows)), None)
    own = [Image.fromarray(one) for one in drawn]
    theirs = processor(own, return_tensors="pt")["pixel_values"].float()
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert len(list(cache.rglob("*.rgb"))) == (len(rows) if known else 0)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORALAB_CACHE", str(tmp_path))
    return tmp_path


def test_small_images_are_held_as_they_are_and_resized_in_the_batch(cache):
    drawn = [noise(5, 5), noise(5, 5)]
    processor = PROCESSORS["vit"]
    small = load_pixels(
        [checked(one) for one in drawn], processing_of(processor), Augmentation()
    )
    assert not small.fitted
    assert small.images[1].shape == (5, 5, 3)
    own = [Image.fromarray(one) for one in drawn]
    theirs = processor(own, return_tensors="pt")["pixel_values"].float()
    assert torch.allclose(small.batch([0, 1], None), theirs, atol=1e-5)
    assert not list(cache.rglob("*.rgb"))
    grey = noise(5, 5, 1)
    both = [checked(grey), checked(grey.repeat(3, axis=2))]
    batch = load_pixels(both, small.processing, Augmentation()).batch([0, 1], None)
    assert (batch[0] == batch[1]).all(), "a grey image is one in colour"


def test_an_image_is_decoded_once(cache, monkeypatch):
    rows = [checked(noise(50, 40)), checked(noise(33, 60))]
    processing = processing_of(PROCESSORS["clip"])
    first = load_pixels(rows, processing, Augmentation()).batch([0, 1], None)
    monkeypatch.setattr(room, "read", None)  # would be called and fail
    again = load_pixels(rows[::-1], processing, Augmentation()).batch([1, 0], None)
    assert (first == again).all()
    assert isinstance(
        load_pixels(rows, processing, Augmentation()).images[0], np.memmap
    )
    with pytest.raises(TypeError):  # a half-written file is made again
        next(cache.rglob("*.rgb")).write_bytes(b"x")
        load_pixels(rows, processing, Augmentation())
    other = replace(processing, resize=17)
    with pytest.raises(TypeError):  # another geometry has files of its own
        load_pixels(rows, other, Augmentation())


def test_a_large_file_is_identified_once_and_a_broken_one_every_time(
    cache, monkeypatch
):
    pixels = noise(90, 80)
    data = saved(pixels)
    assert len(data) > images.KNOWN_FROM
    wanted = (digest(pixels), (90, 80))
    assert identify(image_of(data)) == wanted
    broken = image_of(data[: images.KNOWN_FROM + 5])
    for _ in range(2):
        with pytest.raises(ValueError, match="cut off"):
            identify(broken)
    (kept,) = (p for p in cache.rglob("*") if p.is_file())
    monkeypatch.setattr(images, "decode", None)  # would be called and fail
    assert identify(image_of(data)) == wanted
    kept.write_text("half")
    with pytest.raises(TypeError):
        identify(image_of(data))
    small = saved(noise())
    with pytest.raises(TypeError):  # faster decoded than looked up
        identify(image_of(small))


def test_an_image_that_changed_since_it_was_checked_is_refused(cache, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(saved(noise(50, 50)))
    one = row(str(file), pixels="0" * 64, size=[50, 50], origin="a.csv:7")
    with pytest.raises(DataError, match="changed") as caught:
        load_pixels([one], processing_of(PROCESSORS["clip"]), Augmentation())
    assert caught.value.where == "a.csv:7"


def test_another_size_keeps_the_ratio_of_resize_and_crop():
    found = processing_of(PROCESSORS["deit"], 40)
    assert (found.resize, found.crop) == ((48, 48), (40, 40))
    found = processing_of(PROCESSORS["bit"], 32)
    assert (found.resize, found.crop) == (42, (32, 32))
    assert processing_of(PROCESSORS["vit"], 8).size == (8, 8)
    assert processing_of(PROCESSORS["vit"], 8).tokens == 5
    with pytest.raises(ModelError, match="no whole patches") as caught:
        processing_of(PROCESSORS["vit"], 30)
    assert caught.value.fix == "write 32"


def test_images_of_no_one_size_are_refused():
    loose = CLIPImageProcessorPil(do_center_crop=False, patch_size=4)
    with pytest.raises(ModelError, match="one size"):
        processing_of(loose)


def some(augmentation, count=6, side=8):
    draw = np.random.default_rng(1)
    drawn = [draw.integers(0, 256, (side, side, 3), np.uint8) for _ in range(count)]
    processing = processing_of(PROCESSORS["plain"])
    return Pixels(drawn, True, processing, augmentation)


EACH = [
    Augmentation(flip=True),
    Augmentation(shift=0.25),
    Augmentation(zoom=(0.3, 0.8)),
    Augmentation(flip=True, shift=0.2, zoom=(0.5, 1.0)),
]


@pytest.mark.parametrize("augmentation", EACH)
def test_augmentation_is_a_function_of_seed_epoch_and_example(augmentation):
    held = some(augmentation)
    whole = held.batch(range(6), (3, 1))
    assert whole.shape == (6, 3, 8, 8)
    for i in range(6):  # whatever the batch, and after a resume
        assert (some(augmentation).batch([i], (3, 1))[0] == whole[i]).all()
    plain = held.batch(range(6), None)
    for other in (plain, held.batch(range(6), (3, 2)), held.batch(range(6), (4, 1))):
        assert not torch.equal(other, whole)
    assert torch.equal(plain, some(Augmentation()).batch(range(6), (3, 1)))


def test_a_flip_mirrors_about_half_of_the_images():
    held = some(Augmentation(flip=True), 60)
    plain, found = held.batch(range(60), None), held.batch(range(60), (0, 0))
    mirrored = (found == plain.flip(-1)).flatten(1).all(1)
    assert (mirrored | (found == plain).flatten(1).all(1)).all()
    assert 15 <= int(mirrored.sum()) <= 45


def test_a_shift_moves_and_fills_with_black():
    held = some(Augmentation(shift=0.25), 40)
    plain, found = held.batch(range(40), None), held.batch(range(40), (0, 0))
    moves = set()
    for a, b in zip(plain, found, strict=True):
        padded = torch.nn.functional.pad(a, (2, 2, 2, 2))
        fits = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(padded[:, y : y + 8, x : x + 8], b)
        ]
        assert len(fits) == 1
        moves.add(fits[0])
    assert len(moves) > 10


def test_a_zoom_shows_a_part_of_the_wanted_area():
    side, draw = 64, np.random.default_rng(0)
    ramp = np.arange(side, dtype=np.uint8) * 2
    image = np.broadcast_to(ramp[:, None, None], (side, side, 3))
    parts = [room._part(image, (0.25, 0.5), draw) for _ in range(200)]
    shares = [one.shape[0] * one.shape[1] / side**2 for one in parts]
    assert 0.23 < min(shares) < 0.3 < 0.45 < max(shares) < 0.53
    ratios = [one.shape[1] / one.shape[0] for one in parts]
    assert 0.72 < min(ratios) < 0.85 < 1.2 < max(ratios) < 1.37
