"""Tiny random vision models of every class that is loaded, and images to learn."""

from types import SimpleNamespace

import numpy as np
import torch
import transformers
from PIL import Image

from loralab import compose
from loralab.models.architecture import facts_of
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics
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


def save(kind, folder, **others):
    """Write a model of a kind, with a head for seven classes, and its processor.

    What sees has other sizes if they are given.
    """
    name, sizes, _ = KINDS[kind]
    if kind == "clip":
        others = {"vision_config": {**sizes["vision_config"], **others}}
    sizes = {**sizes, **others}
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


class Fused(transformers.PreTrainedModel):
    """A ViT as timm writes it: query, key and value in one module."""

    config_class = transformers.ViTConfig
    base_model_prefix = "timm_model"
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        width, nn = config.hidden_size, torch.nn
        body, block = nn.Module(), nn.Module()
        block.attn, block.mlp = nn.Module(), nn.Module()
        block.attn.qkv = nn.Linear(width, 3 * width)
        block.attn.proj = nn.Linear(width, width)
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(width, 64), nn.Linear(64, width)
        body.patch_embed = nn.Module()
        body.patch_embed.proj = nn.Conv2d(3, width, PATCH, PATCH)
        body.blocks = nn.ModuleList([block])
        self.timm_model, self.classifier = body, nn.Linear(width, config.num_labels)
        self.post_init()

    def forward(self, pixel_values):
        body = self.timm_model
        block = body.blocks[0]
        x = body.patch_embed.proj(pixel_values).flatten(2).transpose(1, 2)
        q, k, v = block.attn.qkv(x).chunk(3, -1)
        x = x + block.attn.proj((q @ k.mT).softmax(-1) @ v)
        x = x + block.mlp.fc2(block.mlp.fc1(x).relu())
        return SimpleNamespace(logits=self.classifier(x.mean(1)))


def fused():
    """Return such a model, with random weights that are the same every time."""
    config = transformers.ViTConfig(hidden_size=WIDTH, num_labels=3)
    config.model_type = "timm_wrapper"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Fused(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0, 0.2)
    return model


def fused_base():
    """Return it as a base whose head is new."""
    model = fused()
    facts, numerics = facts_of(model, ("classifier",)), Numerics("cpu", "fp32", "test")
    return LoadedModel(
        *(model, None, "image-classification", facts, numerics),
        *(("classifier",), ".", None, "0" * 64),
    )
