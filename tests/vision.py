"""Tiny random vision models of every class that is loaded, and images to learn."""

import numpy as np
import torch
import transformers
from PIL import Image

from loralab import compose
from loralab.models.quiet import quiet_libraries

SIDE, PATCH, WIDTH = 16, 8, 32
_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": PATCH,
    "initializer_range": 0.2,
}
_PLAIN = {**_SIZES, "intermediate_size": 48}
_SIGNS = "abcdefghijklmnopqrstuvwxyz0123456789.,:"
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 2 * len(_SIGNS) + 2,
    "eos_token_id": 2 * len(_SIGNS) + 1,
    "initializer_range": 1.0,
    "projection_dim": 8,
}

# kind -> class, its configuration, trained classes, new modules of another task
KINDS = {
    "vit": ("ViTForImageClassification", _PLAIN, ("classifier",)),
    "deit": ("DeiTForImageClassification", _PLAIN, ("classifier",)),
    "deit-distilled": (
        "DeiTForImageClassificationWithTeacher",
        _PLAIN,
        ("cls_classifier", "distillation_classifier"),
    ),
    "dinov2": ("Dinov2ForImageClassification", _SIZES, ("classifier",)),
    "dinov2-registers": (
        "Dinov2WithRegistersForImageClassification",
        {**_SIZES, "num_register_tokens": 2},
        ("classifier",),
    ),
    "clip": (
        "CLIPModel",
        {
            "vision_config": {**_PLAIN, "projection_dim": 8},
            "text_config": _TEXT,
            "projection_dim": 8,
        },
        ("classifier",),
    ),
}


def save(kind, folder):
    """Write a model of a kind, with a head for seven classes, and its processor."""
    name, sizes, _ = KINDS[kind]
    cls = getattr(transformers, name)
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        more = {} if kind == "clip" else {"num_labels": 7}
        model = cls(cls.config_class(**sizes, **more))
        for parameter in model.parameters():  # some begin at zero, or at 1e-5
            if parameter.ndim < 2:
                torch.nn.init.normal_(parameter, 1 if parameter.min() == 1 else 0, 0.1)
        if kind == "clip":
            torch.nn.init.constant_(model.logit_scale, 3)
        model.save_pretrained(folder)
        processor = transformers.ViTImageProcessorPil(
            size={"height": SIDE, "width": SIDE}
        )
        processor.save_pretrained(folder)
        if kind == "clip":
            words = [*_SIGNS, *(f"{sign}</w>" for sign in _SIGNS)]
            words += ["<|startoftext|>", "<|endoftext|>"]
            vocabulary = {word: i for i, word in enumerate(words)}
            transformers.CLIPTokenizer(vocabulary, []).save_pretrained(folder)
    return folder


def pictures(folder, count=12, side=SIDE):
    """Write images of three classes that a glance tells apart."""
    draw = np.random.default_rng(0)
    for label, colour in {"blue": 2, "green": 1, "red": 0}.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            pixels = draw.integers(0, 90, (side, side, 3), dtype=np.uint8)
            pixels[..., colour] += 150
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def experiment(model, images, *more, name="image-classification"):
    return compose(
        name,
        [
            f"model.path={model}",
            "model.dtype=fp32",
            f"data.source.params.path={images}",
            "task.params.augment.shift=0.1",
            "training.per_device_train_batch_size=6",
            "training.max_steps=4",
            "training.learning_rate=1e-2",
            "evaluation.resamples=200",
            *more,
        ],
    )
