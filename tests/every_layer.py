"""A tiny model with a layer of every kind that PEFT adapts, and adapters of it."""

from __future__ import annotations

import torch
from torch import nn

from loralab.models.quiet import quiet_libraries


class Every(nn.Module):
    """A layer of every kind that PEFT adapts."""

    def __init__(self, groups=1):
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 9, bias=False)
        self.again = nn.ModuleDict({"linear": nn.Linear(9, 6)})
        self.gpt = Conv1D(8, 6)
        self.one = nn.Conv1d(4, 6, 3, padding=1)
        self.two = nn.Conv2d(4, 6, (3, 2), groups=groups)
        self.point = nn.Conv2d(6, 4, 1)
        self.three = nn.Conv3d(2, 4, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.embed(x))


KINDS = ["embed", "linear", "again.linear", "gpt", "one", "two", "point", "three"]


def trained(seed=0, groups=1, **options):
    """Return a PEFT model with every tensor of the adapter drawn at random."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    given = {"r": 2, "lora_alpha": 3, "target_modules": KINDS, **options}
    with quiet_libraries():
        model = get_peft_model(Every(groups), LoraConfig(**given))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.5)
    return model


def saved(folder, **options):
    model = trained(**options)
    with quiet_libraries():
        model.save_pretrained(folder)
    return model


def loaded(folder):
    from peft import PeftModel

    with quiet_libraries():
        return PeftModel.from_pretrained(Every(), folder)


def delta(model, module):
    """Return PEFT's ΔW as a map from inputs to outputs, flattened."""
    layer = model.base_model.model.get_submodule(module)
    found = layer.double().get_delta_weight("default").detach()
    if module in ("embed", "gpt"):  # W is stored [in, out]
        found = found.T
    return found.flatten(1)


def ours(factors):
    return factors.scale * factors.B.double() @ factors.A.double()
