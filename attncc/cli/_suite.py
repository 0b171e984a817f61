"""What `attncc bench --suite` does: rows one by one, shown and kept as they are done."""

from __future__ import annotations

from pathlib import Path

import typer


def run_suite(
    suite_name: str,
    only: str | None,
    quick: bool,
    turns: int | None,
    json: bool,
    save: Path | None,
    plot: Path | None,
    markdown: Path | None,
) -> None:
    """Measure what the file `save` does not have yet of the rows `only` (all by default). Exit status 1 where attncc is
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
    record, spent = suite.Record(save, quick), suite.effort(quick, turns)
    shown = []
    with progress(suite.steps(rows, names, record, spent)) as say:
        for row in rows:
            shown.append(suite.measure_row(row, names, record, spent, say))
            if not json:
                show(shown[-1])
    if json:
        show_json(record.to_json())
    if plot is not None:
        from attncc.bench.plot import roofline

        roofline(shown, record.machine, plot)
    if markdown is not None:
        from attncc.bench.markdown import page

        markdown.write_text(page(shown, record.machine), encoding="utf-8")
    if not all(found.passed for found in shown):
        raise typer.Exit(1)
