"""`attncc db`: the tuned records that kernels get their decisions from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attncc.tuning.database import Database
    from attncc.tuning.inventory import Entry
    from attncc.tuning.record import Record

app = typer.Typer(
    help="List, merge, export or prune the records of tuning.",
    no_args_is_help=True,
    epilog="[bold]Examples[/]\n\nattncc db list\n\nattncc db show 7208332f\n\nattncc db merge theirs.jsonl"
    "\n\nattncc db export winners.jsonl\n\nattncc db prune --dry-run",
)

File = Annotated[
    Path | None,
    typer.Option("--database", "-d", help="A file of records. [default: ATTNCC_DATABASE, else the user's data folder]"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_tasks(
    database: File = None,
    everything: Annotated[bool, typer.Option("--all", help="Every record, failed and beaten ones too.")] = False,
    json: Json = False,
) -> None:
    """List what was tuned: a row for each attention, bucket of sizes and machine."""
    import json as text

    from attncc._rich import table
    from attncc.cli._console import show, show_json
    from attncc.target import detect
    from attncc.tuning.inventory import entries

    opened = _database(database)
    contents = opened.read()
    found = entries(contents.records, detect())
    if json:
        listed = [_data(r) for r in contents.records] if everything else [_entry_data(entry) for entry in found]
        rejected = [{"line": line.number, "reason": line.reason} for line in contents.rejected]
        show_json(text.dumps({"path": str(opened.path), "records": listed, "rejected": rejected}, indent=2))
        return
    if everything:
        title = f"{_count(len(contents.records), 'record')} in {opened.path}"
        rows = table(title, "attention", "sizes", "decisions", "time", "against the default", "date")
        for record in contents.records:
            rows.add_row(*_cells(record), _result(record), record.date[:16].replace("T", " "))
    else:
        title = f"{_count(len(found), 'task')}, {_count(len(contents.records), 'record')} in {opened.path}"
        rows = table(title, "attention", "sizes", "decisions", "time", "against the default", "tried", "use")
        for entry in found:
            tried = f"{entry.measured}" + (f", {entry.failed} failed" if entry.failed else "")
            rows.add_row(*_cells(entry.record), _result(entry.record), tried, _plain(entry.use))
    show(rows)
    for line in contents.rejected:
        print(f"line {line.number} is no record: {line.reason}")


@app.command()
def show(
    attention: Annotated[str, typer.Argument(help="The first characters of its name, as `attncc db list` shows it.")],
    database: File = None,
    json: Json = False,
) -> None:
    """Show the records of one attention: what it is, and how each candidate fared."""
    import json as text

    from attncc._rich import table
    from attncc.cli._console import show as put
    from attncc.cli._console import show_json
    from attncc.tuning.inventory import meaning

    opened = _database(database)
    records = [record for record in opened.records() if record.name.startswith(attention)]
    if not records:
        raise typer.BadParameter(f"{opened.path} has no attention whose name begins with {attention!r}")
    if json:
        show_json(text.dumps([_data(record) for record in records], indent=2))
        return
    for name, group in _by_name(records).items():
        rows = table(meaning(group[0]), "sizes", "machine", "decisions", "time", "against the default", "date")
        for record in sorted(group, key=lambda r: (r.bucket, r.seconds or float("inf"))):
            _, sizes, decisions, time = _cells(record)
            machine = f"{record.target.mcpu}, {record.target.cores} cores"
            rows.add_row(sizes, machine, decisions, time, _result(record), record.date[:16].replace("T", " "))
        print(name)
        put(rows)


@app.command()
def merge(
    files: Annotated[list[Path], typer.Argument(help="Files of records, from other machines or people.")],
    database: File = None,
) -> None:
    """Add the records of other files. They are data: what does not fit this machine or version is never used."""
    from attncc.tuning.database import Database

    opened = _database(database)
    for path in files:
        if not path.exists():
            raise typer.BadParameter(f"there is no file {path}")
        contents = Database(path, foreign=True).read()
        added = opened.merge(contents.records)
        skipped = len(contents.records) - added
        print(f"{path}: {_count(added, 'record')} added, {skipped} known already, {len(contents.rejected)} rejected")
        for line in contents.rejected:
            print(f"  line {line.number} is no record: {line.reason}")


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="The file to write; records are added where it exists.")],
    database: File = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every record, not the best one of each task alone.")
    ] = False,
) -> None:
    """Write the best record of each task to a file, to be merged elsewhere."""
    from attncc.tuning.database import Database
    from attncc.tuning.inventory import essence

    records = _database(database).records()
    written = Database(output).merge(records if everything else essence(records))
    print(f"{_count(written, 'record')} written to {output}")


@app.command()
def prune(
    database: File = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove what is never used again: damaged lines, records that a later one supersedes, those of other versions.

    `attncc tune --check` measures records of other versions anew; run it before.
    """
    from attncc.tuning.database import latest

    opened = _database(database)
    contents = opened.read()
    last = set(map(id, latest(contents.records)))
    other = sum(record.versions.differs() is not None for record in contents.records)
    superseded = sum(id(record) not in last and record.versions.differs() is None for record in contents.records)
    parts = [f"{len(contents.rejected)} damaged", f"{superseded} superseded", f"{other} of other versions"]
    if dry_run:
        print(f"would remove {', '.join(parts)}, of {_count(len(contents.records), 'record')} in {opened.path}")
        return
    kept, gone = opened.prune()
    print(f"removed {_count(gone, 'line')} from {opened.path} ({', '.join(parts)}); {_count(kept, 'record')} left")


@app.command()
def path() -> None:
    """Print the file of this user's records; ATTNCC_DATABASE names another one."""
    from attncc.tuning.database import default_path

    print(default_path())


def _database(path: Path | None) -> Database:
    from attncc.tuning.database import Database

    return Database(path)


def _by_name(records: list[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.name, []).append(record)
    return found


def _cells(record: Record) -> tuple[str, str, str, str]:
    """Attention, sizes, decisions (where there is a default beside, those that differ from it) and time of a record."""
    default = record.default_decisions if record.default_family == record.family else None
    changed = {name: value for name, value in record.decisions.items() if (default or {}).get(name) != value}
    decided = ", ".join(f"{name}={value}" for name, value in changed.items()) or "the default's"
    time = "failed" if record.seconds is None else _time(record.seconds)
    return record.name[:12], str(record.bucket), _plain(f"{record.family}: {decided}"), time


def _result(record: Record) -> str:
    if record.status == "failed":
        return _plain(record.failure)
    if record.gain is None:
        return "not compared"
    noise = f" ± {record.spread:.1%}" if record.spread is not None else ""
    return f"{record.gain:+.1%}{noise}"


def _entry_data(entry: Entry) -> dict[str, object]:
    return {**_data(entry.record), "tried": entry.measured, "failed": entry.failed, "use": entry.use}


def _data(record: Record) -> dict[str, object]:
    from attncc.tuning.fields import written

    return {**written(record), "gain": record.gain, "wins": record.wins}


def _plain(text: str) -> str:
    """Text that is shown as it is: what comes from a file may look like Rich's markup."""
    from rich.markup import escape

    return escape(text)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} µs"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
