"""Parts of documents that a command writes: they stand between ``<!-- NAME -->`` and ``<!-- /NAME -->``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def parts(document: Path, name: str) -> tuple[str, str, str]:
    """What stands before the part, marks included, in it, and behind it."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, mark, rest = document.read_text(encoding="utf-8").partition(start)
    inner, end_mark, tail = rest.partition(end)
    if not mark or not end_mark:
        sys.exit(f"{document}: expected the marks {start} and {end}")
    return head + mark, inner, end_mark + tail


def insert(document: Path, name: str, lines: Sequence[str]) -> None:
    """Replace the part of a document."""
    head, _, tail = parts(document, name)
    document.write_text("\n".join([head, "", *lines, "", tail]), encoding="utf-8")
