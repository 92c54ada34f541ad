"""The log of a run: the logger ``loralab``, its file, and what libraries have to say.

Library code logs by ``logging.getLogger(__name__)`` and prints nothing. `run_log` gives
these lines a file. What transformers, PEFT and Python's `warnings` say is noise on a
console but evidence afterwards: `routed` sends it to ``loralab.libraries``. The last
lines stay in memory, for a log must be able to begin before its directory exists.
"""

from __future__ import annotations

import logging
import os
import re
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import TextIO

LIBRARIES = ("transformers", "peft", "accelerate", "datasets", "bitsandbytes")
SHORTEST_SECRET = 8
_SECRET_NAME = re.compile(r"(_TOKEN|_KEY|_KEY_ID|_SECRET|PASSWORD)$", re.IGNORECASE)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")

logger = logging.getLogger("loralab")
libraries = logging.getLogger("loralab.libraries")


def secrets() -> dict[str, str]:
    """Return the environment variables whose values are secrets.

    A secret is a variable named ``*_TOKEN``, ``*_KEY``, ``*_KEY_ID``, ``*_SECRET`` or
    ``*PASSWORD``; values below 8 characters are left out, for they would hit ordinary
    words.
    """
    named = {k: v for k, v in os.environ.items() if _SECRET_NAME.search(k)}
    return {k: v for k, v in named.items() if len(v) >= SHORTEST_SECRET}


def redact(text: str) -> str:
    """Return `text` with the values of `secrets` as ``***``."""
    for value in sorted(set(secrets().values()), key=len, reverse=True):
        text = text.replace(value, "***")
    return text


class Redacting(logging.Filter):
    """Takes secrets out of a record's message and traceback; belongs on a handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record, and let it pass."""
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.exc_text = redact(record.exc_text) if record.exc_text else None
        return True


class _Recent(logging.Handler):
    """Holds the last records."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(Redacting())
        self.records: deque[logging.LogRecord] = deque(maxlen=500)

    def emit(self, record: logging.LogRecord) -> None:
        kept = copy(record)
        kept.exc_info = None  # its frames would keep a model alive
        self.records.append(kept)


class _Forward(logging.Handler):
    """Hands a library's record to ``loralab.libraries``."""

    def emit(self, record: logging.LogRecord) -> None:
        text = _COLOUR.sub("", record.getMessage())
        libraries.log(record.levelno, "%s: %s", record.name, text)


_recent = _Recent()
logger.addHandler(_recent)
# it complains while PEFT imports it, of a kernel that nothing here needs
logging.getLogger("bitsandbytes").addHandler(logging.NullHandler())


@contextmanager
def _redirected(library: logging.Logger, target: logging.Handler) -> Iterator[None]:
    """Give a logger one handler and the level WARNING within the context."""
    handlers, level, propagate = library.handlers[:], library.level, library.propagate
    for handler in handlers:
        library.removeHandler(handler)
    library.addHandler(target)
    library.setLevel(logging.WARNING)
    library.propagate = False
    try:
        yield
    finally:
        library.removeHandler(target)
        for handler in handlers:
            library.addHandler(handler)
        library.setLevel(level)
        library.propagate = propagate


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    where = f"{Path(filename).name}:{lineno}"
    libraries.warning("%s: %s (%s)", category.__name__, message, where)


@contextmanager
def routed() -> Iterator[None]:
    """Log what libraries log or warn within the context, and show none of it."""
    forward = _Forward()
    with ExitStack() as stack:
        for name in LIBRARIES:
            stack.enter_context(_redirected(logging.getLogger(name), forward))
        stack.enter_context(warnings.catch_warnings())
        warnings.showwarning = _log_warning
        yield


def file_handler(path: Path, level: int) -> logging.Handler:
    """Return a handler that appends to `path`: UTC, level, logger, message."""
    handler = logging.FileHandler(path, mode="a", encoding="utf-8")
    form = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s"
    formatter = logging.Formatter(form, datefmt="%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.setLevel(level)
    handler.addFilter(Redacting())
    return handler


@contextmanager
def run_log(
    path: Path, *, level: int | None = None, since: float | None = None
) -> Iterator[None]:
    """Write a run's log within the context; appended to if it exists.

    An error that leaves the context is written with its traceback. Afterwards every
    logger, and Python's `warnings`, is as it was.

    Args:
        path: The file.
        level: The lowest level written; by default INFO, or that of the logger
            ``loralab`` where it says more.
        since: A `time.time()`; lines logged from then on are written too.

    Raises:
        OSError: the file cannot be written.
    """
    before = logger.level
    wanted = min(logging.INFO, before or logging.INFO) if level is None else level
    handler = file_handler(path, wanted)
    for record in list(_recent.records) if since is not None else ():
        if record.created >= (since or 0) and record.levelno >= wanted:
            handler.handle(copy(record))
    logger.setLevel(min(wanted, before or wanted))
    logger.addHandler(handler)
    try:
        with routed():
            yield
    except BaseException as error:
        # to the file only: whoever catches the error shows it in his own way
        text, where = f"ended by {type(error).__name__}", (str(path), 0)
        handler.handle(
            logger.makeRecord(
                logger.name, logging.ERROR, *where, text, (),
                (type(error), error, error.__traceback__),
            )
        )  # fmt: skip
        raise
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(before)
