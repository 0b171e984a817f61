"""What commands share: where output goes, and progress on anything that takes longer than a moment."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from attncc._rich import WIDTH


def show(renderable: RenderableType) -> None:
    """Print to stdout, as wide as the terminal; `WIDTH` columns where there is none."""
    width = None if sys.stdout.isatty() else WIDTH
    Console(width=width, highlight=False).print(renderable)


def show_json(text: str) -> None:
    """Print JSON to stdout exactly as it is."""
    sys.stdout.write(text + "\n")


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr that moves one of `total` steps each time the function it gives is told what comes next.

    Without a terminal each text is printed once, when it is new.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    texts = TextColumn("{task.description}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    columns = (SpinnerColumn(), BarColumn(), *texts)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


def _lines() -> Callable[[str], None]:
    seen: set[str] = set()

    def say(text: str) -> None:
        if text not in seen:
            seen.add(text)
            print(f"attncc: {text}", file=sys.stderr, flush=True)

    return say
