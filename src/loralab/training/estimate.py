"""`estimate`: what a training would take, of a model and rows that are not here.

Known are the numbers of the architecture, so the adapter's parameters are exact. Every
row is taken to be as long as it may be, so tokens and memory are at most so much:

    tokens   steps · batch · accumulation · longest row
    FLOP     tokens · (4·N + 6·R + 12·L·d·T)         (activations checkpointed: + 2·N)
    peak     p(1) + (L − 1) · (p(3) − p(1)) / 2

N weights of matrix products, R trained ones, L layers of width d, T tokens of a row. A
frozen weight costs a product forward and one backward, a trained one another, and
attention 4·d·T a token forward. p(l) is what `rehearsal` counts of l layers. Hours are
told where a file says how fast trainings run on the machine that is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from loralab import registry
from loralab.adapters.attach import Attached, attach
from loralab.config import ExperimentConfig
from loralab.config.problems import config_errors
from loralab.data.examples import Examples, get_preprocessor
from loralab.errors import ConfigError
from loralab.models.empty import shaped
from loralab.models.known import shape_source
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import Numerics
from loralab.models.processors import IMAGE_HEADS
from loralab.registry import Strict
from loralab.training.rehearsal import rehearse

CLASSES = ("0", "1")
"""Of a new head; a row of weights more for each other class."""
FEW, MORE = 1, 3
LONGEST = ("max_length", "max_source_length")
FROZEN, TRAINED, ATTENTION, AGAIN = 4, 6, 12, 2
"""Operations a weight, and a channel of attention: see the head of this file."""


class Machine(Strict):
    """A machine that is meant, as a file of the user's says it.

    Attributes:
        name: What it is called.
        flops_per_second: What trainings reach on it, not what a data sheet promises: of
            a run, ``training.flops`` over ``training.step_seconds`` in ``run.json``.
        memory_bytes: Of the accelerator, or of the machine where it has none.
        source: Where the numbers are from.
    """

    name: str
    flops_per_second: float = Field(gt=0)
    memory_bytes: float = Field(gt=0)
    source: str


@dataclass(frozen=True)
class Estimate:
    """What a training would take.

    Attributes:
        model: Of the base.
        parameters: Of base and head; of a model that sees, of the tower that does.
        trained: Of the adapter and the head.
        steps: Of the optimizer; None where it hangs on how many rows there are.
        tokens: At most; None likewise.
        base_bytes: Of the base's weights as they are computed with.
        adapter_bytes: Of the adapter on disk.
        checkpoint_bytes: Of all checkpoints that are kept.
        peak_bytes: Tensors at the peak of a training step, at most; the process with
            its libraries comes on top.
        flops: Of all steps, at most.
        seconds: Of all steps, on the machine that is meant; None without one.
        fits: Whether the peak is less than its memory; None without one.
        unknown: What is taken for granted, or not known, in words.
    """

    model: str
    parameters: int
    trained: int
    steps: int | None
    tokens: int | None
    base_bytes: int
    adapter_bytes: int
    checkpoint_bytes: int
    peak_bytes: int
    flops: float | None
    seconds: float | None
    fits: bool | None
    unknown: tuple[str, ...]


def read_machine(file: Path) -> Machine:
    """Return the machine that a YAML file tells of.

    Raises:
        ConfigError: no such file, not YAML, or keys that cannot be meant.
    """
    if not file.is_file():
        raise ConfigError("no such file", where=str(file))
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Machine.model_validate(content)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"not YAML: {error}", where=str(file)) from None
    except ValidationError as error:
        raise config_errors(error, content, str(file), Machine) from None


def estimate(config: ExperimentConfig, machine: Machine | None = None) -> Estimate:
    """Return what the training of an experiment would take; reads neither rows nor hub.

    Args:
        config: The experiment.
        machine: The one that is meant.

    Raises:
        LoralabError: the base's numbers are not known, or the adapter does not fit it.
    """
    whole, base = _attached(config, None)
    training, facts = config.training, base.facts
    length = _longest(config, base)
    steps = _steps(config)
    rows = rows_of_a_step(config)
    tokens = steps * rows * length if steps is not None else None
    weights = sum(p.numel() * p.element_size() for p in base.model.parameters())
    trained = 4 * whole.trainable
    least, optimizer = _rehearsed(config, FEW, length)
    more, _ = _rehearsed(config, MORE, length)
    per_layer = (more - least) / (MORE - FEW)
    peak = round(least + (facts.layers - FEW) * per_layer)
    flops = tokens * _flops_a_token(config, whole, base, length) if tokens else None
    kept = min(training.save_total_limit, steps or training.save_total_limit)
    held = round(trained * optimizer)
    return Estimate(
        model=config.model.path,
        parameters=facts.parameters,
        trained=whole.trainable,
        steps=steps,
        tokens=tokens,
        base_bytes=weights - trained,
        adapter_bytes=trained,
        checkpoint_bytes=kept * (trained + held),
        peak_bytes=peak,
        flops=flops,
        seconds=flops / machine.flops_per_second if machine and flops else None,
        fits=peak < machine.memory_bytes if machine else None,
        unknown=tuple(_unknown(config, base, length, steps, machine)),
    )


@dataclass(frozen=True)
class _Tokenizer:
    """What is asked of one where there is none."""

    pad_token_id: int = 0


def _attached(
    config: ExperimentConfig, layers: int | None
) -> tuple[Attached, LoadedModel]:
    """Return the adapter on the base's shapes, and the base."""
    head = get_preprocessor(config.task).head
    # counted as a CPU does it: what a GPU's allocator holds beyond live tensors is less
    dtype = "bf16" if config.model.dtype == "best" else config.model.dtype
    numerics = Numerics("cpu", dtype, "as is meant")
    with shape_source(config.model) as source:
        base = shaped(
            config.model,
            source,
            _Tokenizer(),
            numerics,
            head,
            CLASSES if _classifies(head) else (),
            layers=layers,
        )
    return attach(base, config.peft), base


def _classifies(head: str) -> bool:
    return head.endswith("classification") or head == "feature-extraction"


def _longest(config: ExperimentConfig, base: LoadedModel) -> int:
    """Return the tokens of the longest row that there may be."""
    shape = base.model.config
    if base.head in IMAGE_HEADS:
        sees = getattr(shape, "vision_config", shape)
        return int((sees.image_size // sees.patch_size) ** 2 + 1)
    params: Any = registry.get("task", config.task.name).schema(**config.task.params)
    asked = [getattr(params, name) for name in LONGEST if hasattr(params, name)]
    limit = getattr(shape, "max_position_embeddings", None)
    return min(asked[0], limit) if limit else int(asked[0])


def _steps(config: ExperimentConfig) -> int | None:
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    rows = config.data.max_rows.train
    if rows is None:
        return None
    per_epoch = -(-rows // rows_of_a_step(config))
    return int(-(-training.num_train_epochs * per_epoch // 1))


def rows_of_a_step(config: ExperimentConfig) -> int:
    """Return the rows of an optimizer's step, those of all processes."""
    training = config.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return rows * training.parallel.processes


@dataclass(frozen=True)
class _Blank:
    """Images without content, as `Pixels` hands them out."""

    tokens: int
    side: int

    def batch(self, chosen: list[int], draw: object) -> Any:
        import torch

        return torch.zeros(len(chosen), 3, self.side, self.side)


def _rows(base: LoadedModel, count: int, length: int) -> Examples:
    """Return rows of full length, all of whose tokens are supervised where any is."""
    if base.head in IMAGE_HEADS:
        shape = base.model.config
        side = getattr(shape, "vision_config", shape).image_size
        pixels: Any = _Blank(length, side)
        return Examples([], [0] * count, list(range(count)), pixels=pixels)
    ids = [[0] * length] * count
    labels: dict[str, tuple[Any, Any]] = {
        "causal-lm": ("next-token", ids),
        "token-classification": ("token", ids),
        "question-answering": ("span", [[0, 0]] * count),
        "seq2seq-lm": ("sequence", ids),
    }
    supervision, own = labels.get(base.head, ("example", [0] * count))
    return Examples(ids, own, list(range(count)), supervision)


def _rehearsed(config: ExperimentConfig, layers: int, length: int) -> tuple[int, float]:
    """Return the peak of a step with so many layers, in bytes.

    And the optimizer's state, as a share of what is trained.
    """
    made, base = _attached(config, layers)
    size = config.training.per_device_train_batch_size
    batch = [[[i] for i in range(size)]]
    rows = _rows(base, size, length)
    found = rehearse(made.model, base, rows, batch, batch, config.training)
    return found.training, found.optimizer / found.trained


def _flops_a_token(
    config: ExperimentConfig, made: Attached, base: LoadedModel, length: int
) -> float:
    from torch import nn

    tables = (
        module.weight.numel()
        for module in base.model.modules()
        if isinstance(module, nn.Embedding)
    )
    products = base.facts.parameters - sum(tables)
    a_weight = FROZEN + AGAIN * config.training.gradient_checkpointing
    attention = ATTENTION * base.facts.layers * base.facts.hidden * length
    return float(a_weight * products + TRAINED * made.trainable + attention)


def _unknown(
    config: ExperimentConfig,
    base: LoadedModel,
    length: int,
    steps: int | None,
    machine: Machine | None,
) -> list[str]:
    found = []
    if base.head not in IMAGE_HEADS:
        found.append(f"how long rows are: each is taken to have {length:,} tokens")
    if _classifies(base.head):
        found.append(f"how many classes there are: {len(CLASSES)} are counted")
    if steps is None:
        found.append("how many rows there are: set training.max_steps")
    found.append("how large the rows are on disk, and what evaluation takes")
    if config.model.dtype == "best":
        found.append("the dtype: bf16 is taken")
    if machine is None:
        found.append("hours, and whether it fits: name a machine with --machine")
    return found
