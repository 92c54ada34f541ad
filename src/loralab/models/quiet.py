"""Libraries' noise, kept off the console: it goes to the log of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from loralab.logs import routed


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide progress bars, and log the warnings of transformers and PEFT."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with routed():
            yield
    finally:
        if bars:
            logging.enable_progress_bar()
