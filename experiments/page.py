"""A page of results: what printed it, what its figures are, and tables whose rows are shown as they come."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from compress.files import write_text


class Page:
    """Collects a document in Markdown while its tables are printed.

    Args:
        title: of the document.
        command: what prints it.
        about: paragraphs that say what the figures are.
    """

    def __init__(self, title: str, command: str, *about: str) -> None:
        self._lines = [f"# {title}", "", "Printed by:", "", f"    {command}", ""]
        for paragraph in about:
            self._lines += [paragraph.strip(), ""]

    def table(self, headings: Iterable[str], rows: Iterable[Iterable[str]], title: str | None = None) -> None:
        """Print one table, row by row."""
        names = list(headings)
        if title is not None:
            print(f"\n{title}", flush=True)
            self._lines += [f"## {title}", ""]
        self._show("| " + " | ".join(names) + " |")
        self._show("| --- " * len(names) + "|")
        for row in rows:
            self._show("| " + " | ".join(row) + " |")
        self._lines.append("")

    def paragraph(self, *lines: str) -> None:
        """Print lines that belong together, and an empty one; an indented line is kept as it is."""
        for line in lines:
            self._show(line)
        self._show("")

    def save(self, path: Path | None) -> None:
        """Write the document, if a file is wanted."""
        if path is not None:
            write_text(path, "\n".join(self._lines))

    def _show(self, line: str) -> None:
        print(line, flush=True)
        self._lines.append(line)


def about(documentation: str | None, first: int = 2) -> str:
    """The paragraphs of a script's docstring behind its title and its commands."""
    return "\n\n".join((documentation or "").split("\n\n")[first:])


def environment() -> str:
    """What the figures depend on."""
    import torch  # seconds: pages of files and reports do without

    instructions = torch.backends.cpu.get_cpu_capability()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {instructions}."
