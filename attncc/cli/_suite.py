"""What `attncc bench --suite` does: rows one by one, shown and kept as they are done."""

from __future__ import annotations

from pathlib import Path

import typer


def run_suite(suite_name: str, only: str | None, quick: bool, json: bool, save: Path | None, plot: Path | None) -> None:
    """Measure the rows of `only` (all by default) that the file `save` does not have yet. Exit status 1 where attncc is
    outside its error bound.

    Raises ValueError for a suite, row, contender or file that is none, before anything is measured.
    """
    from attncc.bench import suite
    from attncc.bench.contenders import CONTENDERS
    from attncc.cli._console import progress, show, show_json

    if suite_name != "cpu":
        raise ValueError(f"--suite {suite_name}: there is cpu")
    asked = [name.strip() for name in only.split(",")] if only else []
    names = [name for name in asked if name in CONTENDERS] or None
    rows = suite.chosen([name for name in asked if name not in CONTENDERS])
    if plot is not None:
        from attncc.bench.plot import require

        require()
    record = suite.Record(save, quick)
    missing = [row for row in rows if row.name not in record.rows]
    with progress(suite.steps(missing, names, quick)) as say:
        for row in rows:
            if row.name not in record.rows:
                record.add(suite.measured(row, names, quick, say))
            if not json:
                show(record.rows[row.name])
    shown = [record.rows[row.name] for row in rows]
    if json:
        show_json(record.to_json())
    if plot is not None:
        from attncc.bench.plot import roofline

        roofline(shown, record.machine, plot)
    if not all(found.passed for found in shown):
        raise typer.Exit(1)
