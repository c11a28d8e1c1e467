"""What the commands print: tables and JSON on the standard output."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tazza import __version__
from tazza.hot import COMPILED

__all__ = ["build", "show_json", "show_table", "show_text", "versions"]


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {"tazza": __version__, "python": platform.python_version(), "numpy": np.__version__}


def build() -> str:
    """Tell whether the hot path of this installation is compiled: ``"compiled"`` or ``"uncompiled"``."""
    return "compiled" if COMPILED else "uncompiled"


def show_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, indent=2))


def show_text(text: str = "") -> None:
    """Print a paragraph; what the stream's encoding lacks becomes a question mark."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding))


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1) -> None:
    """Print a table, in colour where somebody watches and rich is installed.

    Args:
        title: above the table.
        columns: their heads; all empty for a table without.
        rows: the cells, as many as there are columns.
        left: so many columns, from the left, hold text; numbers follow and are aligned to the right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    if not (sys.stdout.isatty() and _rich_table(title, columns, cells, left)):
        show_text("\n".join([title, *_lines(columns, cells, left)]))
        show_text()


def _lines(columns: Sequence[str], cells: list[list[str]], left: int) -> list[str]:
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    head = [list(columns), ["-" * width for width in widths]] if any(columns) else []
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if number < left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in [*head, *cells]
    ]


def _rich_table(title: str, columns: Sequence[str], cells: list[list[str]], left: int) -> bool:
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:  # rich is optional: plain lines do
        return False
    table = Table(title=Text(title, style="bold"), title_justify="left", box=SIMPLE_HEAD, show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", header_style="bold cyan")
    for row in cells:
        table.add_row(*map(Text, row))  # Text: brackets in a cell are no markup
    Console().print(table)
    return True
