"""Adapters on disk: plain PEFT, with a note of the base they were trained on.

``adapter_model.safetensors`` and ``adapter_config.json`` are PEFT's own. Beside them
stand the tokenizer with its chat template, and ``loralab.json``: the base's path,
revision and fingerprint, the task and what it learnt (class names).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loralab.config import StorageConfig, TaskConfig
from loralab.errors import AdapterError
from loralab.lowrank.settings import NOTE
from loralab.models.loaded import LoadedModel
from loralab.models.quiet import quiet_libraries
from loralab.runs.files import read_record

FORMAT_VERSION = 1
Plain = Callable[[Any], tuple[Any, dict[str, Any]]]
"""From a trained model to the configuration and tensors of a plain LoRA."""
WEIGHTS = "adapter_model.safetensors"


def template_hash(processor: Any) -> str | None:
    """Return the sha256 of a tokenizer's chat template, or None."""
    template = getattr(processor, "chat_template", None)  # images have none
    return hashlib.sha256(template.encode()).hexdigest() if template else None


def save_weights(model: Any, folder: Path) -> None:
    """Write the adapter's weights and configuration, as PEFT does."""
    with quiet_libraries():
        model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card of PEFT's


def save_plain(folder: Path, config: Any, state: dict[str, Any]) -> None:
    """Write a plain LoRA: PEFT's configuration and tensors, by PEFT's names."""
    from safetensors.torch import save_file

    config.inference_mode = True
    config.save_pretrained(folder)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def save_adapter(
    folder: Path,
    model: Any,
    loaded: LoadedModel,
    task: TaskConfig,
    state: dict[str, Any],
    method: str = "lora",
    plain: Plain | None = None,
    rewritten: dict[str, Any] | None = None,
) -> None:
    """Write everything that is needed to use the adapter.

    Args:
        folder: An existing directory.
        model: The PEFT model.
        loaded: Its base.
        task: The task's name and params.
        state: What the task learnt from rows.
        method: The PEFT method that was trained.
        plain: Makes the plain LoRA that is written instead of what was trained.
        rewritten: What the method made of the base, see `adapters/rewriting.py`.
    """
    if plain is None:
        save_weights(model, folder)
    else:
        save_plain(folder, *plain(model))
    loaded.processor.save_pretrained(folder)
    note = {
        "format": FORMAT_VERSION,
        "method": method,
        "base": {
            "path": loaded.path,
            "revision": loaded.revision,
            "fingerprint": loaded.fingerprint,
            "dtype": loaded.numerics.dtype,
            "storage": told(loaded.storage),
            "rewritten": rewritten,
        },
        "task": task.model_dump(mode="json"),
        "task_state": state,
        "chat_template_sha256": template_hash(loaded.processor),
    }
    text = json.dumps(note, indent=1)
    (folder / "loralab.json").write_text(text, encoding="utf-8")


def told(storage: StorageConfig | None) -> dict[str, Any] | None:
    """Return a base's storage as a note has it."""
    return storage.model_dump(mode="json") if storage else None


def read_note(folder: Path) -> dict[str, Any]:
    """Return the content of an adapter's ``loralab.json``.

    Args:
        folder: The adapter's, or the file itself, where it has another name.

    Raises:
        AdapterError: missing, broken or of a later format.
    """
    file = folder / NOTE if folder.is_dir() else folder
    wrong = f"{file.name} cannot be read"
    return read_record(file, FORMAT_VERSION, AdapterError, wrong)


def check_base(
    note: dict[str, Any],
    loaded: LoadedModel,
    folder: Path,
    *,
    any_storage: bool = False,
) -> None:
    """Refuse a base that the adapter was not trained on.

    Args:
        note: Of the adapter.
        loaded: The base.
        folder: The adapter's, for the error.
        any_storage: Whether the same base may be stored otherwise, as a caller who
            chose the storage wants it.

    Raises:
        AdapterError: the fingerprints differ, or the storage does.
    """
    trained_on = note["base"]
    if trained_on["fingerprint"] != loaded.fingerprint:
        raise AdapterError(
            f"trained on {trained_on['path']} ({trained_on['fingerprint'][:12]}), "
            f"and this is {loaded.path} ({loaded.fingerprint[:12]})",
            where=str(folder),
            why="an adapter is a difference to the very weights it was trained on",
            fix="load that base",
        )
    trained, found = trained_on.get("storage"), told(loaded.storage)
    if trained != found and not any_storage:
        words = [s["name"] if s else "float" for s in (trained, found)]
        if words[0] == words[1]:
            words = [f"{s['name']} {s['params']}" for s in (trained, found) if s]
        raise AdapterError(
            f"trained on a base stored as {words[0]}, and this one is {words[1]}",
            where=str(folder),
            why="an adapter is a difference to the very weights it was trained on",
            fix="load the base as it was, or name model.storage yourself",
        )


def load_weights(
    model: Any,
    folder: Path,
    convert: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Load an adapter's weights into a PEFT model that was built for them.

    Args:
        model: A PEFT model with the same configuration.
        folder: The directory with ``adapter_model.safetensors``.
        convert: Turns the stored tensors into those that the model trains.

    Raises:
        AdapterError: no safetensors, a broken file, a missing or unexpected key, or a
            tensor of another shape. PEFT itself only warns of missing keys.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from loralab.adapters.selection import Selection

    file = folder / WEIGHTS
    if not file.is_file():
        raise AdapterError(
            f"no {WEIGHTS}", where=str(folder), why="only safetensors are loaded"
        )
    try:
        stored = load_file(file)
    except SafetensorError as error:
        raise AdapterError("not safetensors", where=str(file), why=str(error)) from None
    stored = convert(stored) if convert else stored
    _check_tensors(stored, state_of(model), file)
    if isinstance(model, Selection):
        model.load(stored)
        return
    from peft import set_peft_model_state_dict

    with quiet_libraries():
        set_peft_model_state_dict(model, stored)


def _check_tensors(
    stored: dict[str, Any], expected: dict[str, Any], file: Path
) -> None:
    """Refuse tensors that are missing, unexpected, or of another shape."""
    for kind, keys in (
        ("misses", set(expected) - set(stored)),
        ("has unexpected", set(stored) - set(expected)),
    ):
        if keys:
            raise AdapterError(
                f"the adapter {kind} {len(keys)} tensors, such as {sorted(keys)[0]}",
                where=str(file),
                fix="it belongs to another configuration, or the file is broken",
            )
    for name, tensor in stored.items():
        if tensor.shape != expected[name].shape:
            raise AdapterError(
                f"{name} is {list(tensor.shape)}, expected "
                f"{list(expected[name].shape)}",
                where=str(file),
            )


def state_of(model: Any) -> dict[str, Any]:
    """Return the trained tensors of a model, by the names they are stored under."""
    from peft import get_peft_model_state_dict

    from loralab.adapters.selection import Selection

    if isinstance(model, Selection):
        return model.state()
    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))
