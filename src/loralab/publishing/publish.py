"""`publish`: a finished run to a target, verified there, with a receipt."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock

from loralab import registry
from loralab.config.named import chosen
from loralab.config.schema import Named
from loralab.errors import PublishingError
from loralab.publishing.files import collect
from loralab.publishing.retry import Delivery, OnEvent, Retry
from loralab.publishing.store import TargetParams
from loralab.runs import Run
from loralab.runs.files import write_json
from loralab.runs.run import now

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RECEIPTS = "published.json"


class TargetConfig(Named):
    """Where a run is published: the target's name and params."""

    kind = "publishing target"


def target_config(name: str, params: Mapping[str, Any]) -> TargetConfig:
    """Return the checked configuration of a target.

    Raises:
        ConfigErrors: no such target, an unknown key, a wrong value; all at once.
    """
    return chosen(TargetConfig, name, params)


def publish(
    run: Run,
    target: TargetConfig,
    *,
    dry_run: bool = False,
    force: bool = False,
    on_event: OnEvent | None = None,
    retry: Retry | None = None,
) -> dict[str, Any]:
    """Publish a run; what the target has with equal checksum is not sent again.

    Args:
        run: A finished adapter, or an artefact whose parity certificate passed.
        target: See `target_config`.
        dry_run: Say what would be sent and where; connect to nothing.
        force: Publish an artefact without a certificate that passed.
        on_event: Called with ``publishing``, ``sending``, ``retry``, ``published``.
        retry: How often and how soon; by default three attempts.

    Returns:
        The receipt, which is also appended to the run's ``published.json``: target,
        destination, time, files with bytes and sha256, what was sent and what was
        there. It holds no secret.

    Raises:
        PublishingError: the run may not be published, or it did not arrive.
    """
    tell = on_event or (lambda event: None)
    forced = check_publishable(run, force)
    entry = registry.get(TargetConfig.kind, target.name)
    params: Any = entry.schema(**target.params)
    destination = str(entry.facts["destination"](params, run.id))
    receipt: dict[str, Any] = {
        "target": target.name,
        "destination": destination,
        "forced": forced,
    }
    with TemporaryDirectory(prefix="loralab-") as staging:
        files = collect(run, Path(staging), _license(params))
        sizes = {f.name: {"bytes": f.bytes, "sha256": f.sha256} for f in files}
        tell({"event": "publishing", **receipt, "files": sizes, "dry_run": dry_run})
        if dry_run:
            return {**receipt, "dry_run": True, "files": sizes}
        store = entry.target(params, run.id)
        there = Delivery(store, files, retry or Retry(), tell).run()
    sent = [f.name for f in files if f.name not in there]
    receipt |= {"time": now(), "sent": sent, "there": sorted(there), "files": sizes}
    _append(run, receipt)
    tell({"event": "published", **receipt})
    logger.info("published %s to %s", run.id, destination)
    return receipt


def _license(params: Any) -> str | None:
    return params.license if isinstance(params, TargetParams) else None


def check_publishable(run: Run, force: bool) -> bool:
    """Return whether it took `force` to let a run be published.

    Raises:
        PublishingError: not finished; or an artefact whose parity with its predecessor
            was not shown, and not forced.
    """
    content = run.read()
    kind = content.get("kind")
    if kind not in ("adapter", "artefact"):
        raise PublishingError(
            f"a run of kind {kind!r} is not published",
            where=str(run.path),
            fix="publish an adapter run or an artefact",
        )
    if run.status != "complete":
        raise PublishingError(
            f"this run is not complete (status: {run.status})",
            where=str(run.path),
            fix="finish it first",
        )
    if kind == "adapter":
        _check_adapter(run.require_adapter())
        return False
    reason = _parity_problem(run)
    if reason and not force:
        raise PublishingError(
            reason,
            where=str(run.path / "parity.json"),
            why="nobody has shown that it answers as what it was made from",
            fix="make the artefact again and look at its checks, or publish with "
            "--force: the model card then says so",
        )
    return bool(reason)


def _check_adapter(folder: Path) -> None:
    """Refuse an adapter that nobody could load.

    Raises:
        PublishingError: its ``adapter_config.json`` cannot be read.
    """
    file = folder / "adapter_config.json"
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PublishingError(
            "the adapter's configuration cannot be read",
            where=str(file),
            why=str(error),
        ) from None


def _parity_problem(run: Run) -> str:
    try:
        text = (run.path / "parity.json").read_text(encoding="utf-8")
        passed = json.loads(text)["passed"]
    except FileNotFoundError:
        return "this artefact has no parity certificate"
    except (ValueError, KeyError, TypeError) as error:
        return f"the parity certificate cannot be read: {error}"
    return "" if passed is True else "this artefact's parity certificate did not pass"


def _append(run: Run, receipt: dict[str, Any]) -> None:
    """Add a receipt to those of the run, atomically; two publishers take turns."""
    file = run.path / RECEIPTS
    with FileLock(run.path / ".lock"):
        content: dict[str, Any] = {"format": FORMAT_VERSION, "receipts": []}
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
        content["receipts"].append(receipt)
        write_json(file, content)


class CloudUploader:
    """The same by the names that other frameworks have; it calls `publish`.

    Args:
        run: What is published.
        dry_run: See `publish`.
        force: See `publish`.
        on_event: See `publish`.
    """

    def __init__(
        self,
        run: Run,
        *,
        dry_run: bool = False,
        force: bool = False,
        on_event: OnEvent | None = None,
    ) -> None:
        self._run, self._dry_run, self._force = run, dry_run, force
        self._on_event = on_event

    def _to(self, name: str, params: dict[str, Any]) -> dict[str, Any]:
        return publish(
            self._run,
            target_config(name, params),
            dry_run=self._dry_run,
            force=self._force,
            on_event=self._on_event,
        )

    def upload_to_huggingface(self, repo: str, **params: Any) -> dict[str, Any]:
        """Publish to a repository of the hub; return the receipt."""
        return self._to("hub", {"repo": repo, **params})

    def upload_to_gdrive(self, folder: str, **params: Any) -> dict[str, Any]:
        """Publish into a folder of Google Drive, by its id; return the receipt."""
        return self._to("gdrive", {"folder": folder, **params})

    def upload_to_s3(self, bucket: str, **params: Any) -> dict[str, Any]:
        """Publish into a bucket; return the receipt."""
        return self._to("s3", {"bucket": bucket, **params})

    def create_zip_backup(self, path: str | Path, **params: Any) -> dict[str, Any]:
        """Publish into a zip archive; return the receipt."""
        return self._to("archive", {"path": str(path), **params})
