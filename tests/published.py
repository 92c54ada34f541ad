"""Run directories as the runs module writes them, for what publishes and reads them."""

import json
from functools import cache

from loralab.config import compose
from loralab.runs.files import sha256_file
from loralab.runs.run import create

INTERVAL = {"value": 0.5, "low": 0.25, "high": 0.75}


@cache
def config_of(name):
    return compose("sms-spam", [f"name={name}"])


def _eval(run):
    metrics = {"accuracy": {"adapter": INTERVAL, "base": INTERVAL}}
    result = {"split": "test", "rows": 9, "confidence": 0.95, "metrics": metrics}
    result |= {
        "primary": "accuracy",
        "measured_rows": 9,
        "better": {"accuracy": "higher"},
    }
    (run.path / "eval").mkdir()
    (run.path / "eval" / "test.json").write_text(json.dumps(result))
    (run.path / "eval" / "predictions-test.parquet").write_bytes(b"rows of people")


def adapter_run(folder, weights=b"weights", **head):
    """Return a complete adapter run of plain files."""
    run = create(config_of("spam"), folder, "adapter")
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(weights)
    (run.adapter / "adapter_config.json").write_text('{"r": 8}')
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "state.json").write_text("{}")
    _eval(run)
    base = {"path": "org/base", "revision": "c0ffee", "fingerprint": "f" * 64}
    state = {"labels": ["ham", "spam"]}
    plan = {"trainable": 1234, "total": 99999}
    given = {"base": base, "task": "text-classification", "task_state": state}
    run.update(**{"status": "complete", "plan": plan, **given, **head})
    return run


def artefact_run(folder, passed=True):
    """Return an artefact; without certificate where `passed` is None."""
    run = create(config_of("small"), folder, "artefact")
    content = run.path / "artefact"
    content.mkdir()
    weights = content / "model.safetensors"
    weights.write_bytes(b"packed")
    told = {"bytes": weights.stat().st_size, "sha256": sha256_file(weights)}
    note = {
        "format": {"name": "nf4", "params": {"block": 64}},
        "engine": "torch",
        "task": {"name": "causal-lm", "params": {}},
        "base": {"path": "org/base"},
        "files": {weights.name: told},
    }
    (content / "loralab.json").write_text(json.dumps(note))
    if passed is not None:
        checks = [{"name": "top-1 agreement", "passed": passed, "value": 0.5}]
        told = {"format": 1, "predecessor": "spam-0", "passed": passed}
        text = json.dumps({**told, "checks": checks})
        (run.path / "parity.json").write_text(text)
    run.update(status="complete")
    return run


def content(run):
    """Return every file of a run with its bytes, but for receipts and the lock."""
    left_out = ("published.json", ".lock")
    return {
        path.relative_to(run.path).as_posix(): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file() and path.name not in left_out
    }
