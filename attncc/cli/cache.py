"""`attncc cache`: the kernels that are kept on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attncc.runtime.cache import Entry

app = typer.Typer(
    help="List, clear or locate the kernels kept on disk.",
    no_args_is_help=True,
    epilog="[bold]Examples[/]\n\nattncc cache list\n\nattncc cache clear\n\ndu -sh $(attncc cache path)",
)


@app.command("list")
def list_entries(json: Annotated[bool, typer.Option("--json", help="Print the entries as JSON.")] = False) -> None:
    """List the kernels on disk, newest first."""
    import json as text
    from dataclasses import asdict
    from datetime import datetime

    from attncc._rich import table
    from attncc.cli._console import show, show_json
    from attncc.runtime import cache

    entries = cache.entries()
    if json:
        show_json(text.dumps([asdict(entry) for entry in entries], indent=2))
        return
    size = sum(entry.bytes for entry in entries)
    rows = table(f"{len(entries)} kernels, {size / 1e6:.1f} MB, in {cache.root()}", "name", "made", "kB", "kernel")
    for entry in entries:
        made = datetime.fromtimestamp(entry.created).strftime("%Y-%m-%d %H:%M")
        rows.add_row(entry.name[:12], made, f"{entry.bytes / 1e3:.0f}", _describe(entry))
    show(rows)


@app.command()
def clear() -> None:
    """Remove every kernel from disk. Kernels in running processes stay in use."""
    from attncc.runtime import cache

    count = cache.clear()
    print(f"removed {count} kernel{'s' * (count != 1)} from {cache.root()}")


@app.command()
def path() -> None:
    """Print the folder of the cache; ATTNCC_CACHE_DIR names another one."""
    from attncc.runtime import cache

    print(cache.root())


def _describe(entry: Entry) -> str:
    """Family and meaning of an entry; the parts of its key say both."""
    from attncc.spec import AttentionSpec

    if not entry.valid:
        return "damaged: rebuilt at its next use"
    return f"{entry.key['family']}: {AttentionSpec.from_json(entry.key['spec'])}"
