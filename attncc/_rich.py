"""How attncc's tables look, in one place, so that they read the same on a terminal, in a log and in a bug report."""

from __future__ import annotations

import io

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

WIDTH = 118
"""Columns where no terminal says otherwise."""


def table(title: str, *columns: str) -> Table:
    """An empty table with a bold title to the left and a rule under its header."""
    result = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    result.min_width = min(len(title), WIDTH)  # a title is wrapped to its table otherwise
    for column in columns:
        result.add_column(column, overflow="fold")
    return result


def to_text(renderable: RenderableType) -> str:
    """What `renderable` prints on a plain terminal of `WIDTH` columns."""
    buffer = io.StringIO()
    Console(file=buffer, width=WIDTH, color_system=None, highlight=False).print(renderable)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())
