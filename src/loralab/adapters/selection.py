"""Training some of a model's own tensors: no adapter, the same interface.

Full fine-tuning, BitFit and a linear probe add nothing to a model. `Selection` gives
them what the rest of the house asks of a PEFT model: `disable_adapter` puts the
original values back for a while, and only the trained tensors are saved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn


class Selection(nn.Module):
    """A transformers model of which some tensors are trained.

    Args:
        model: The model; all its other tensors are frozen.
        names: The parameters to train.
    """

    def __init__(self, model: Any, names: Sequence[str]) -> None:
        super().__init__()
        self.base_model = model
        self.names = tuple(names)
        wanted = set(names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in wanted)
        for i, name in enumerate(self.names):
            original = model.get_parameter(name).detach().clone()
            self.register_buffer(f"original_{i}", original, persistent=False)

    def __getattr__(self, name: str) -> Any:
        """Look up what is not here in the model."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_model":
                raise
            return getattr(self.base_model, name)

    def get_base_model(self) -> Any:
        """Return the transformers model."""
        return self.base_model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        return self.base_model(*args, **kwargs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Put the original values in the place of the trained ones for a while."""
        held = {name: self.base_model.get_parameter(name) for name in self.names}
        trained = {name: parameter.data for name, parameter in held.items()}
        for i, (name, parameter) in enumerate(held.items()):
            original = getattr(self, f"original_{i}")
            parameter.data = original.to(trained[name].dtype)
        try:
            yield
        finally:
            for name, parameter in held.items():
                parameter.data = trained[name]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the trained tensors by name, fp32, contiguous, on the CPU."""
        return {
            name: self.base_model.get_parameter(name).detach().cpu().contiguous()
            for name in self.names
        }

    def load(self, stored: dict[str, torch.Tensor]) -> None:
        """Set the trained tensors; names and shapes are those of `state`."""
        with torch.no_grad():
            for name, tensor in stored.items():
                self.base_model.get_parameter(name).copy_(tensor)

    def merge_and_unload(self) -> Any:
        """Return the model itself: the trained values are its own."""
        return self.base_model

    def save_pretrained(self, folder: Path, **_: Any) -> None:
        """Write the trained tensors."""
        from safetensors.torch import save_file

        save_file(self.state(), Path(folder) / "adapter_model.safetensors")
