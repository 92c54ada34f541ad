"""Every PEFT method on a real model: trained a little, saved, read by a fresh process.

`python -m tests.methods FOLDER` reads back all cells of all models in one process.
"""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from loralab.adapters import abilities
from loralab.adapters.attach import attach, base_only, restore
from loralab.adapters.files import save_plain, save_weights, state_of
from loralab.config import ModelConfig, PEFTConfig
from loralab.models.architecture import facts_of
from loralab.models.base import load_base
from loralab.models.forward import supervised_logits
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics, seed_everything

STEPS = 20
TEXTS = ["win a free prize now", "see you at lunch", "call this number", "good night"]
RATES = {  # where the usual 5e-3 is too small or too large for 20 steps
    "full": 1e-4, "vera": 0.05, "fourierft": 0.05, "prompt-tuning": 0.1,
    "prefix-tuning": 0.05, "p-tuning": 5e-3, "ia3": 0.05, "bitfit": 2e-2,
    "ln-tuning": 2e-2, "linear-probe": 0.05, "boft": 0.02, "oft": 0.02,
    "lora init=pissa": 5e-4, "lora init=corda": 1e-3,
    "lora init=olora": 2e-4, "lora init=lora-ga": 2e-4,
}  # fmt: skip
SMALL = {
    "oft": {"block_size": 8},
    "vera": {"rank": 32},
    "fourierft": {"n_frequency": 64},
}


def cells() -> list[tuple[str, str, dict]]:
    """Return (label, method, params) of every method and variant."""
    found = []
    for row in abilities.table():
        method = row.method.split(" ")[0]
        params = {**SMALL.get(method, {}), **row.params}
        if row.params.get("init") == "eva":  # a pooler gives one input a row
            params["rank"] = len(TEXTS)
        found.append((row.method, method, params))
    return found


def base_of(model: str, folder: Path) -> LoadedModel:
    """Return a fresh base: MiniLM, SmolLM2 or a tiny ViT, in fp32."""
    kept = _loaded(model, folder)
    return replace(kept, model=copy.deepcopy(kept.model))


@cache
def _loaded(model: str, folder: Path) -> LoadedModel:
    seed_everything(0)
    if model == "minilm":
        config = ModelConfig(path="embedded:minilm", dtype="fp32")
        return load_base(config, "sequence-classification", ["ham", "spam"])
    if model == "smollm2":
        config = ModelConfig(path="embedded:smollm2-135m-instruct", dtype="fp32")
        return load_base(config, "causal-lm")
    return _vit(folder)


def _vit(folder: Path) -> LoadedModel:
    from transformers import ViTConfig, ViTForImageClassification

    shape = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_labels=2,
        intermediate_size=64, image_size=16, patch_size=8, initializer_range=0.2,
    )  # fmt: skip
    if not (folder / "vit").exists():
        ViTForImageClassification(shape).save_pretrained(folder / "vit")
    model = ViTForImageClassification.from_pretrained(folder / "vit").eval()
    facts = facts_of(model, ("classifier",))
    return LoadedModel(
        model, None, "image-classification", facts, Numerics("cpu", "fp32", "test"),
        ("classifier",), "./vit", None, "vit",
    )  # fmt: skip


def batch_of(base: LoadedModel) -> dict[str, torch.Tensor]:
    """Return the one easy batch that is learnt."""
    labels = torch.tensor([1, 0, 1, 0])
    if base.head == "image-classification":
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(4, 3, 16, 16, generator=generator)
        return {"pixel_values": pixels, "labels": labels, "example": torch.arange(4)}
    base.processor.padding_side = "right"
    made = dict(base.processor(TEXTS, padding=True, return_tensors="pt"))
    if base.head == "sequence-classification":
        return {**made, "labels": labels, "example": torch.arange(4)}
    ids, mask = made["input_ids"], made["attention_mask"].bool()
    asked = mask[:, 1:].flatten().nonzero().squeeze(1)
    rows, columns = asked // (ids.shape[1] - 1), asked % (ids.shape[1] - 1)
    return {
        **made,
        "places": rows * ids.shape[1] + columns,
        "labels": ids[rows, columns + 1],
        "example": rows,
    }


def logits_of(model: object, base: LoadedModel) -> torch.Tensor:
    """Return the logits of the batch in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return supervised_logits(model, batch_of(base), base)[0]


def train_cell(model: str, method: str, params: dict, folder: Path) -> dict:
    """Attach, train, save; return what the test asserts."""
    base = base_of(model, folder.parent)
    seed_everything(0)
    batch = batch_of(base)
    config = PEFTConfig(name=method, params=params)
    attached = attach(base, config, lambda: iter([batch]))
    net = attached.model
    trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trained.items()}
    rate = RATES.get(f"lora init={params.get('init')}", RATES.get(method, 2e-3))
    optimizer = torch.optim.AdamW(trained.values(), lr=rate)
    losses = []
    net.train()
    for _ in range(STEPS):
        logits, labels, _ = supervised_logits(net, batch, base)
        loss = cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    folder.mkdir(parents=True)
    if attached.plain:
        save_plain(folder, *attached.plain(net))
    else:
        save_weights(net, folder)
    logits = logits_of(net, base)
    with base_only(net):
        plain = logits_of(net, base)
    head = {n: t for n, t in state_of(net).items() if "classifier" in n}
    still = [n for n, p in trained.items() if torch.equal(before[n], p)]
    return {
        "losses": losses, "still": still, "logits": logits, "model": net, "base": base,
        "head": head, "plain": plain, "attached": attached, "config": config,
    }  # fmt: skip


def main(folder: Path) -> None:
    """Read back every cell of every model; write its logits."""
    for file in sorted(folder.glob("*/cells.json")):
        own = file.parent
        for name, (method, params) in json.loads(file.read_text()).items():
            base = base_of(own.name, own)
            config = PEFTConfig(name=method, params=params)
            logits = logits_of(restore(base, config, own / name), base)
            (own / name / "logits.json").write_text(json.dumps(logits.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
