"""Stored models: what an artefact says of itself, and the engine that runs it.

    runs/<name>-<format>-<hash>/
      artefact/        what the format wrote, the tokenizer, and the note `loralab.json`
      parity.json      how it compares with its predecessor

The note holds all that is needed to use the folder alone: the storage format and its
params, the engine, the head, the task and what it learnt, and every file's size and
sha256.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loralab import registry
from loralab.adapters.attach import restore
from loralab.config import ModelConfig, PEFTConfig, TaskConfig
from loralab.data.examples import classes_of, get_preprocessor
from loralab.errors import ExportError
from loralab.inference.load import Loaded, check_template, load_processor
from loralab.models.empty import empty_base
from loralab.models.loaded import LoadedModel
from loralab.models.numerics import choose_numerics
from loralab.runs.files import read_record, sha256_file

FORMAT_VERSION = 1
NOTE = "loralab.json"
AGAIN = "make the artefact again with `loralab quantize … --force`"


def read_note(folder: Path) -> dict[str, Any]:
    """Return the note of an artefact's folder.

    Raises:
        ExportError: missing, broken, or of a later format.
    """
    wrong = f"no artefact: {NOTE} cannot be read"
    return read_record(folder / NOTE, FORMAT_VERSION, ExportError, wrong)


def check_files(folder: Path, note: Mapping[str, Any], contents: bool = False) -> None:
    """Refuse a folder whose files are not those that were written.

    Args:
        folder: The artefact's folder.
        note: Its note.
        contents: Whether to read them all for their sha256, or to ask their sizes.

    Raises:
        ExportError: one is missing, or of another size or content; it is named.
    """
    for name, told in note["files"].items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else None
        if found != told["bytes"]:
            why = "it is missing" if found is None else f"it has {found:,} bytes"
            raise ExportError(
                f"{name} is not the file that was written ({told['bytes']:,} bytes)",
                where=str(folder),
                why=why,
                fix=AGAIN,
            )
        if contents and sha256_file(file) != told["sha256"]:
            raise ExportError(
                f"{name} has another content than was written",
                where=str(folder),
                why="its sha256 is not the one of the note beside it",
                fix=AGAIN,
            )


def load_artefact(folder: Path, config: ModelConfig) -> Loaded:
    """Open a stored model in its engine.

    Args:
        folder: The artefact's.
        config: Of the base that it was made from; device and dtype mean something to a
            stored model only in the engine ``torch``.

    Raises:
        ExportError: a file of it is missing or not whole.
        AdapterError: a changed chat template.
    """
    note = read_note(folder)
    check_files(folder, note)
    task = get_preprocessor(TaskConfig(**note["task"]))
    task.restore(note["task_state"])
    shapes = empty_base(
        _as_stored(config, note), note["head"], classes_of(note["task_state"])
    )
    processor = load_processor(folder, note["head"])
    task.prepare(processor)
    check_template(note, processor, folder)
    numerics = shapes.numerics
    model = registry.get("engine", note["engine"]).target(folder, note, numerics)
    base = LoadedModel(
        model=model,
        processor=processor,
        head=note["head"],
        facts=shapes.facts,
        numerics=numerics,
        new_modules=(),
        path=note["base"]["path"],
        revision=note["base"]["revision"],
        fingerprint=note["base"]["fingerprint"],
    )
    if beside := note.get("beside"):
        if note["engine"] == "torch":
            base.model = restore(base, PEFTConfig(name="lora"), folder / beside)
        else:
            model.set_adapter(beside)
    return Loaded(base.model.eval(), base, task)


def _as_stored(config: ModelConfig, note: Mapping[str, Any]) -> ModelConfig:
    """Return where and in what the stored model computes.

    An engine but torch takes and gives fp32 on the CPU. Torch computes in the format's
    own dtype where it has one; fp16 has none on a CPU.
    """
    if note["engine"] != "torch":
        return config.model_copy(
            update={"storage": None, "device": "cpu", "dtype": "fp32"}
        )
    entry = registry.get("storage format", note["storage"]["name"])
    own = getattr(entry.schema(**note["storage"]["params"]), "compute", "best")
    here = choose_numerics(config.device, "best").device
    dtype = "best" if own == "fp16" and here == "cpu" else own
    return config.model_copy(update={"storage": None, "dtype": dtype})
