"""Load a trained adapter on its base, and refuse what does not belong together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loralab.adapters.attach import restore
from loralab.adapters.files import check_base, read_note, template_hash
from loralab.adapters.rewriting import rewrite
from loralab.config import (
    ExperimentConfig,
    ModelConfig,
    PEFTConfig,
    TaskConfig,
    TrainingConfig,
)
from loralab.data.examples import DataPreprocessor, classes_of, get_preprocessor
from loralab.errors import AdapterError
from loralab.lowrank.settings import NOTE
from loralab.merging.export.heads import Head, head_of
from loralab.models.base import load_base
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import seed_everything
from loralab.models.processors import IMAGE_HEADS
from loralab.models.quiet import quiet_libraries
from loralab.runs import Run


@dataclass
class Loaded:
    """What answers: a base alone, a stored model, or an adapter on its base.

    Attributes:
        model: In evaluation mode: a transformers model, what an engine opened, or a
            PEFT model, whose `disable_adapter()` gives the base.
        base: The base; its processor is the adapter's own.
        task: The preprocessor, with the class names of training.
    """

    model: Any
    base: LoadedModel
    task: DataPreprocessor


@dataclass
class LoadedAdapter(Loaded):
    """An adapter on its base.

    Attributes:
        peft: The method that it was trained with.
        folder: Where it is stored.
    """

    peft: PEFTConfig
    folder: Path


def load_adapter(run: Run, **model_changes: Any) -> LoadedAdapter:
    """Load the adapter of a run; see `adapter_of`.

    Raises:
        RunError: no adapter yet.
        AdapterError: another base, missing keys, or a changed chat template.
    """
    return adapter_of(run.require_adapter(), run.config, **model_changes)


def adapter_of(
    folder: Path,
    config: ExperimentConfig,
    head: Head | None = None,
    **model_changes: Any,
) -> LoadedAdapter:
    """Load an adapter on its base.

    The seed is that of training, so the base's untrained head is the one that training
    began with, and a comparison with the base is one with the starting point.

    Args:
        folder: The adapter's.
        config: That it was trained with, or the task whose head it is given.
        head: A merged adapter's, which answers as this task.
        model_changes: Fields of `ModelConfig` to load with, such as ``dtype="fp32"``.
            ``storage`` among them puts the adapter on a base stored otherwise.

    Raises:
        AdapterError: another base, missing keys, or a changed chat template.
    """
    note = read_note(head.note if head else folder / NOTE)
    seed_everything(config.training.seed)
    revision = note["base"]["revision"]
    model = {**config.model.model_dump(), "revision": revision, **model_changes}
    peft = PEFTConfig() if head else config.peft
    any_storage = "storage" in model_changes
    return _on_base(folder, note, config.task, model, peft, head, any_storage)


def merged_of(
    folder: Path, task: str | None = None, **model_changes: Any
) -> LoadedAdapter:
    """Load a merged adapter on its base, to answer as one of its tasks.

    Args:
        folder: The merged adapter's.
        task: The task's name; see `loralab.merging.export.heads.head_of`.
        model_changes: See `adapter_of`.

    Raises:
        AdapterError: no such task, or see `adapter_of`.
    """
    head = head_of(folder, task)
    note = read_note(head.note)
    seed_everything(TrainingConfig().seed)  # of the base's untrained head
    base = note["base"]
    model = {key: base.get(key) for key in ("path", "revision", "storage")}
    model |= model_changes
    asked = TaskConfig(**note["task"])
    any_storage = "storage" in model_changes
    return _on_base(folder, note, asked, model, PEFTConfig(), head, any_storage)


def _on_base(
    folder: Path,
    note: dict[str, Any],
    asked: TaskConfig,
    model_fields: dict[str, Any],
    peft: PEFTConfig,
    head: Head | None,
    any_storage: bool,
) -> LoadedAdapter:
    """Load the base that a note tells of, and put an adapter on it."""
    task = get_preprocessor(asked)
    task.restore(note["task_state"])
    model_config = ModelConfig(**model_fields)
    base = load_base(model_config, task.head, classes_of(note["task_state"]))
    check_base(note, base, folder, any_storage=any_storage)
    # a merged adapter of tasks with tokenizers cut to different lengths has none, and
    # the base's own differs from what was trained with in its template at most
    if not head or (folder / "tokenizer.json").is_file():
        base.processor = load_processor(folder, task.head)
    task.prepare(base.processor)
    check_template(note, base.processor, folder)
    if head and (rewritten := note["base"].get("rewritten")):
        rewrite(base, rewritten)  # a method that is restored does it itself
    model = restore(base, peft, folder, head)
    return LoadedAdapter(model.eval(), base, task, peft, folder)


def load_processor(folder: Path, head: str) -> Any:
    """Return the tokenizer, or the image processor, that was stored with a model.

    Args:
        folder: An adapter's, or a stored model's.
        head: What it was trained for.

    Raises:
        AdapterError: it cannot be loaded.
    """
    import transformers

    auto: Any = transformers.AutoTokenizer
    options = {}
    if head in IMAGE_HEADS:
        auto, options = transformers.AutoImageProcessor, {"backend": "pil"}
    try:
        with quiet_libraries():
            return auto.from_pretrained(str(folder), trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError) as error:
        raise AdapterError(
            "the tokenizer or image processor cannot be loaded",
            where=str(folder),
            why=str(error).split("\n")[0],
        ) from None


def check_template(note: dict[str, Any], processor: Any, folder: Path) -> None:
    """Refuse a chat template that is not the one of training.

    Raises:
        AdapterError: the hashes differ.
    """
    found, trained = template_hash(processor), note["chat_template_sha256"]
    if found != trained:
        raise AdapterError(
            "the chat template is not the one of training",
            where=str(folder / "chat_template.jinja"),
            why="the model would be prompted in a shape it has not learnt",
            fix="put the template back",
        )
