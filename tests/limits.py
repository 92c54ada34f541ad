"""The limits that keep the house readable; run by `make lint`.

A file has at most 400 lines, a function at most 40 of code (its docstring not counted:
shapes, units and sources belong there and are not what makes code hard to follow).
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

FILE_LINES, FUNCTION_LINES = 400, 40


def code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return a function's lines without its docstring."""
    lines = (node.end_lineno or 0) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        lines -= (first.end_lineno or 0) - first.lineno + 1
    return lines


def main() -> int:
    """Print what is over a limit; return 1 if anything is."""
    found = []
    for file in sorted(Path("src").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if (count := len(text.splitlines())) > FILE_LINES:
            found.append(f"{file}: {count} lines (limit {FILE_LINES})")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                count = code_lines(node)
                if count > FUNCTION_LINES:
                    where = f"{file}:{node.lineno} {node.name}"
                    found.append(f"{where}: {count} lines (limit {FUNCTION_LINES})")
    print("\n".join(found) or "files and functions are within their limits")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
