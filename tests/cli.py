"""Run the command line in this process, as a user would call it."""

import contextlib
import io
import sys
from dataclasses import dataclass

from loralab.cli.main import main


@dataclass
class Outcome:
    code: int
    out: str
    err: str


def loralab(*args):
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["loralab", *map(str, args)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return Outcome(code, out.getvalue(), err.getvalue())
