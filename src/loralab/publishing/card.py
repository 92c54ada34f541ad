"""The model card: what the run's own files say, for people and for the hub.

Every figure is read from ``run.json``, ``config.yaml``, ``eval/`` or ``parity.json`` of
the run; what they do not say is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from loralab.adapters.abilities import is_native
from loralab.config import PEFTConfig
from loralab.config.compose import read_plain
from loralab.evaluation.intervals import Interval
from loralab.reporting.renderers import escape_markdown, to_markdown
from loralab.reporting.tables import Cell, Column, Table
from loralab.runs import Run
from loralab.units import percent

PIPELINES = {"causal-lm": "text-generation", "seq2seq-lm": "text2text-generation"}
"""Tasks that the hub calls otherwise."""
LOADERS = {
    "causal-lm": "AutoModelForCausalLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "image-classification": "AutoModelForImageClassification",
    "zero-shot-image-classification": "CLIPVisionModelWithProjection",
}
"""The class of transformers that an adapter of a task stands on."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(run: Run, license_id: str | None = None) -> str:
    """Return the card of an adapter or an artefact, as Markdown with YAML before it.

    Args:
        run: Finished.
        license_id: The SPDX id; without one the card names none.
    """
    content, config = run.read(), _read(run.path / "config.yaml")
    note = _read(run.path / str(content["kind"]) / "loralab.json")
    head = _front_matter(content, config, note, license_id)
    sections = [
        f"# {content['name']}",
        _opening(content, config, note),
        _listed("How it was trained", _training(content, config)),
        _listed("How it is stored", _storage(content, note)),
        *_results(run),
        _parity(run),
        _usage(content, config, note),
        "Sizes and sha256 of all files are in `manifest.json`; the whole configuration "
        "is `config.yaml`.",
    ]
    front = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    return f"---\n{front}---\n\n" + "\n\n".join(s for s in sections if s) + "\n"


def _read(path: Path) -> dict[str, Any]:
    """Return a YAML or JSON mapping; an artefact may lack one."""
    if not path.is_file():
        return {}
    return read_plain(path)


def _named(found: Any) -> str:
    """Return the name of a thing that is ``{name, params}`` or a bare name."""
    return str(found.get("name", "")) if isinstance(found, dict) else str(found or "")


def _base(content: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    return dict(content.get("base") or note.get("base") or {})


def _task(content: Mapping[str, Any], note: Mapping[str, Any]) -> str:
    return _named(content.get("task")) or _named(note.get("task"))


def _shown_path(path: str) -> str:
    """Return a base's name without the folders of a machine."""
    return path if path.startswith("embedded:") or _HUB_ID.fullmatch(path) else (
        Path(path).name
    )  # fmt: skip


def _source(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    source = config.get("data", {}).get("source", {})
    return _named(source), dict(source.get("params") or {})


def _front_matter(
    content: Mapping[str, Any],
    config: Mapping[str, Any],
    note: Mapping[str, Any],
    license_id: str | None,
) -> dict[str, Any]:
    base, task = _base(content, note), _task(content, note)
    adapter = content["kind"] == "adapter"
    found: dict[str, Any] = {"license": license_id} if license_id else {}
    if _HUB_ID.fullmatch(str(base.get("path", ""))):
        found["base_model"] = base["path"]
    if adapter:
        found["library_name"] = "peft"
    if task:
        found["pipeline_tag"] = PIPELINES.get(task, task)
    name, params = _source(config)
    if name == "hub":
        found["datasets"] = [params["path"]]
    method = _named(config.get("peft"))
    more = [method or "lora"] if adapter else [_format(note)[0], note.get("engine", "")]
    found["tags"] = ["loralab", *(tag for tag in more if tag)]
    return found


def _is_native(config: Mapping[str, Any]) -> bool:
    """Tell whether a run's method changes the base that its adapter stands on."""
    peft = config.get("peft")
    return bool(peft) and is_native(PEFTConfig.model_validate(peft))


def _opening(
    content: Mapping[str, Any], config: Mapping[str, Any], note: Mapping[str, Any]
) -> str:
    path = _shown_path(str(_base(content, note).get("path", "an unnamed base")))
    task = _task(content, note)
    what = "An artefact to run"
    if content["kind"] == "adapter":
        what = f"An adapter ({_named(config.get('peft')) or 'PEFT'})"
    return f"{what}, of `{path}`" + (f", for {task}." if task else ".")


def _flat(params: Mapping[str, Any]) -> str:
    """Return params that are set, as ``key=value``."""
    given = {k: v for k, v in params.items() if v not in (None, {}, [])}
    return ", ".join(f"{key}={value}" for key, value in given.items())


def _training(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, str]:
    """Return what was trained on what, by name; only what the run says."""
    base, plan = content.get("base") or {}, content.get("plan") or {}
    spent, data = content.get("training") or {}, content.get("data") or {}
    source, params = _source(config)
    peft = config.get("peft") or {}
    trained = config.get("training") or {}
    packages = (content.get("environment") or {}).get("packages", {})
    sizes = ", ".join(
        f"{count:,} {name}" for name, count in data.get("sizes", {}).items()
    )
    keys = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "optim", "seed")
    rows = {
        "base": _shown_path(str(base.get("path", ""))),
        "base revision": base.get("revision"),
        "base fingerprint": base.get("fingerprint"),
        "method": f"{_named(peft)} ({_flat(peft.get('params') or {})})" if peft else "",
        "trained parameters": _share(plan),
        "data": f"{source} ({_flat(params)})" if source else "",
        "rows": sizes,
        "data fingerprint": data.get("fingerprint"),
        "training": _flat({key: trained.get(key) for key in keys}),
        "spent": _spent(spent),
        "computed in": (content.get("numerics") or {}).get("dtype"),
        "versions": ", ".join(
            f"{name} {packages[name]}"
            for name in ("loralab", "torch", "transformers", "peft")
            if name in packages
        ),
    }
    return {name: str(value) for name, value in rows.items() if value}


def _share(plan: Mapping[str, Any]) -> str:
    if "trainable" not in plan:
        return ""
    share = 100 * plan["trainable"] / plan["total"]
    return f"{plan['trainable']:,} of {plan['total']:,} ({share:.2f} %)"


def _spent(spent: Mapping[str, Any]) -> str:
    if "steps" not in spent:
        return ""
    return f"{spent['steps']:,} steps, {spent['tokens']:,} tokens"


def _format(note: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return an artefact's storage format and its params."""
    told = note.get("storage") or note.get("format")
    if isinstance(told, dict):
        return _named(told), dict(told.get("params") or {})
    params = dict(note.get("params") or {})
    return (told, params) if isinstance(told, str) else ("", params)


def _storage(content: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, str]:
    if content["kind"] != "artefact":
        return {}
    name, params = _format(note)
    files = note.get("files") or {}
    total = sum(int(told["bytes"]) for told in files.values())
    rows = {
        "format": f"{name} ({_flat(params)})" if params else name,
        "engine": note.get("engine"),
        "bytes": f"{total:,}" if files else "",
    }
    return {key: str(value) for key, value in rows.items() if value}


def _listed(title: str, rows: Mapping[str, str]) -> str:
    if not rows:
        return ""
    lines = [f"- {key}: {escape_markdown(value)}" for key, value in rows.items()]
    return "\n".join([f"## {title}", "", *lines])


def _results(run: Run) -> list[str]:
    """Return a table of each evaluation."""
    tables = [_table(result) for result in run.evaluations().values()]
    return ["## Measured", *(to_markdown(table) for table in tables)] if tables else []


def _table(result: Mapping[str, Any]) -> Table:
    arms = list(dict.fromkeys(arm for row in result["metrics"].values() for arm in row))
    columns = [Column("metric"), *(Column(a, signed=a == "difference") for a in arms)]
    rows: list[list[Cell]] = []
    for metric, row in result["metrics"].items():
        found = {arm: Interval(**told) for arm, told in row.items()}
        rows.append([metric, *(found.get(arm) for arm in arms)])
    count = result.get("measured_rows", result["rows"])
    share = percent(result["confidence"], None)
    notes = [f"{share} intervals over {count:,} rows."]
    if "difference" in arms:
        notes.append("The difference is adapter minus base, on the same rows.")
    return Table(f"{result['split']} rows", columns, rows, notes)


def _parity(run: Run) -> str:
    """Return what the parity certificate says, check by check."""
    file = run.path / "parity.json"
    if run.read()["kind"] != "artefact":
        return ""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        passed, of = told["passed"] is True, told.get("predecessor", "its predecessor")
        checks = [dict(check) for check in told.get("checks", ())]
    except (OSError, ValueError, KeyError, TypeError):
        return "## Parity\n\n**There is no parity certificate that can be read.**"
    verdict = "passed" if passed else "**did not pass**"
    lines = [f"- {escape_markdown(_flat(check))}" for check in checks]
    return "\n".join(["## Parity", "", f"Compared with `{of}`: {verdict}.", "", *lines])


def _usage(
    content: Mapping[str, Any], config: Mapping[str, Any], note: Mapping[str, Any]
) -> str:
    """Return how it is used: with PEFT alone, where the base is as PEFT loads it.

    An artefact is used from its folder, and so is an adapter whose method rewrites its
    base, or trains that base's own tensors: only loralab does the same to it again.
    """
    if content["kind"] != "adapter" or _is_native(config):
        line = 'loralab infer "FOLDER OF THESE FILES" "A TEXT"'
        return "\n".join(["## Use", "", "```bash", line, "```"])
    path = str(_base(content, note).get("path", ""))
    loader = LOADERS.get(_task(content, note), "AutoModel")
    where = f'"{path}"' if _HUB_ID.fullmatch(path) else '"FOLDER OF THE BASE"'
    lines = ["from peft import PeftModel", f"from transformers import {loader}"]
    if path.startswith("embedded:"):
        lines.insert(0, "from loralab.models.embedded import embedded_folder")
        where = f'embedded_folder("{path.removeprefix("embedded:")}")'
    labels = (content.get("task_state") or {}).get("labels")
    if labels and "Classification" in loader:
        where += f", num_labels={len(labels)}"
    if "Image" in loader:  # its files may hold a head for other classes
        where += ", ignore_mismatched_sizes=True"
    lines += ["", f"base = {loader}.from_pretrained({where})"]
    lines += ['model = PeftModel.from_pretrained(base, "FOLDER OR REPOSITORY")']
    if "Projection" in loader:
        lines += ["# model(pixel_values=…).image_embeds, against CLIP's text features"]
    return "\n".join(["## Use", "", "```python", *lines, "```"])
