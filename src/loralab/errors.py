"""The errors that a user can meet: each says what, where, why, and the fix."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LoralabError(Exception):
    """Base of every error that is the user's to mend; the CLI exits with 2 on it.

    Args:
        what: What is wrong, in one sentence.
        where: The key, file and line, or tensor.
        why: The reason, when it is not plain from `what`.
        fix: What to do.
    """

    def __init__(
        self, what: str, *, where: str = "", why: str = "", fix: str = ""
    ) -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        rest = [("why", self.why), ("fix", self.fix)]
        return "\n".join([head, *(f"  {k}: {v}" for k, v in rest if v)])


class ConfigError(LoralabError):
    """An experiment that cannot be meant: unknown key, wrong type, unknown name."""


class ConfigErrors(ConfigError):
    """Several configuration errors, shown at once."""

    def __init__(self, problems: Iterable[ConfigError]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class DataError(LoralabError):
    """Rows that cannot be read, or cannot be trained on."""


class AssetError(LoralabError):
    """An embedded package that cannot be fetched, or is not the pinned one."""


class ModelError(LoralabError):
    """A base model that cannot be loaded safely."""


class AdapterError(LoralabError):
    """An adapter that does not fit: targets, keys, base or template."""


class QuantizationError(LoralabError):
    """A weight that a storage format cannot hold, or a format that does not exist."""


class RunError(LoralabError):
    """A run directory that is missing, busy, broken or not what was asked for."""


class TrainingError(LoralabError):
    """Training that went wrong in a way that would otherwise stay silent."""


class ExportError(LoralabError):
    """An artefact that cannot be made, or is not what it should be."""


class PublishingError(LoralabError):
    """Something that may not be published, or that did not arrive."""


class MergeError(LoralabError):
    """Adapters that do not belong together, or a merge state that was changed."""


class EvidenceError(LoralabError):
    """A claim that the measurements cannot carry: too few seeds, diverged runs."""


class PaperError(LoralabError):
    """A paper that says what its results do not: a number, a claim, a figure."""


class PaperErrors(PaperError):
    """Everything that is wrong in a draft, shown at once."""

    def __init__(self, problems: Iterable[PaperError]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


def nearest(name: str, legal: Iterable[str], count: int = 3) -> str:
    """Return ``"nearest: a, b"`` for the legal names most like `name`.

    Falls back to the whole list when nothing is near, so that the message always
    shows a legal spelling.
    """
    legal = sorted(legal)
    close = get_close_matches(name, legal, n=count, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    return f"known: {', '.join(legal)}" if legal else "nothing is registered"
