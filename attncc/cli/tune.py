"""`attncc tune`: search faster kernels for the attention of a model, of a file of shapes, or of common shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attncc.cli import _fleet

if TYPE_CHECKING:
    from attncc.target import Target
    from attncc.tuning.measure import Measurer
    from attncc.tuning.task import Task

EXAMPLES = (
    "[bold]Examples[/]\n\nattncc tune package.models:factory\n\nattncc tune --suite common --seconds 600\n\n"
    "attncc tune --workload shapes.json --trials 256 --report tuned.html\n\nattncc tune --check\n\n"
    "attncc tune --suite common --device cuda   [dim]for this machine's NVIDIA GPU[/]\n\n"
    "attncc tune --suite common --tracker 127.0.0.1:9190 --key zen4   [dim]on devices: see attncc device[/]\n\n"
    'shapes.json: [{"heads": 32, "kv_heads": 8, "q_len": 1, "kv_len": 4096, "head_dim": 128}]\n\n'
    "Its fields are batch, heads, kv_heads, q_len, kv_len, head_dim, value_dim, dtype, causal, window, prefix, filled, "
    "padded, documents, tree, score, bilinear, cache, outputs, capacity and threads, as in attncc.bench.cases.Case."
)


def tune(
    factory: Annotated[
        str | None, typer.Argument(metavar="[MODULE:FACTORY]", help="Or path/to/file.py:FACTORY.", show_default=False)
    ] = None,
    workload: Annotated[Path | None, typer.Option(help="JSON list of shapes; see the example below.")] = None,
    suite: Annotated[str | None, typer.Option(help="Shapes that people run: common.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Candidates a task; those on record count.")] = 64,
    seconds: Annotated[float | None, typer.Option(min=1, help="End after this time, for all tasks together.")] = None,
    neighbours: Annotated[
        bool, typer.Option("--neighbours", help="Also measure winners at half and at twice the lengths.")
    ] = False,
    database: Annotated[Path | None, typer.Option(help="File of records; the user's own by default.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report (needs the tune extra).")] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Instead, measure what the records claim again, beside the defaults.")
    ] = False,
    device: _fleet.DeviceOption = "cpu",
    tracker: _fleet.TrackerOption = None,
    key: _fleet.KeyOption = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Search faster kernels on this machine; from then on every attncc model of this user runs them.

    The factory returns (model, inputs), as for `attncc explain`; its attention calls become tasks, those first where
    most time may be won. Each candidate is checked against float64 before its time counts, and what wins must beat the
    default in a paired comparison by more than the noise. Stop it at any time: what was measured is on record, and the
    next run goes on from there. Exit status 1 where nothing was measured; with --check, where a record is slower than
    the default or fails.
    """
    if check:
        with _fleet.measuring(tracker, key, device) as measurer:
            _check(database, measurer, json)
        return
    from attncc.cli._console import show, show_json
    from attncc.cli._tuning import progress
    from attncc.target import detect
    from attncc.tuning.run import tune_tasks
    from attncc.tuning.search import Budget

    if report is not None:
        from attncc.tuning.report import require

        require()
    with progress() as say, _fleet.measuring(tracker, key, device) as measurer:
        target, threads = (detect(), None) if measurer is None else (measurer.target, measurer.threads)
        tasks = _tasks(factory, workload, suite, target, threads)
        tuned = tune_tasks(tasks, Budget(trials, seconds), database, measurer, say, seed, neighbours)
    if report is not None:
        tuned.html(report)
    if json:
        show_json(tuned.to_json())
    else:
        show(tuned)
    if tuned.nothing:
        raise ValueError(f"nothing was measured: {tuned.nothing}")


def _tasks(
    factory: str | None, workload: Path | None, suite: str | None, target: Target, threads: int | None
) -> list[Task]:
    """The tasks of whichever source is given. Raises ValueError for none or several."""
    from attncc.cli._factory import call
    from attncc.tuning.workload import SUITES, of_cases, of_model, read_cases

    if [factory, workload, suite].count(None) != 2:
        raise ValueError("give one of MODULE:FACTORY, --workload FILE and --suite common")
    if workload is not None:
        return of_cases(read_cases(workload), target, threads)
    if suite is not None:
        if suite not in SUITES:
            raise ValueError(f"--suite {suite}: there is {', '.join(SUITES)}")
        return of_cases(SUITES[suite], target, threads)
    model, args, kwargs = call(factory or "")
    return of_model(model, args, kwargs, target, threads)


def _check(database: Path | None, measurer: Measurer | None, json: bool) -> None:
    """Have every claim of the records measured again, and show what became of it."""
    from attncc.cli._console import progress, show, show_json
    from attncc.cli._tuning import verdicts, verdicts_json
    from attncc.tuning.database import Database
    from attncc.tuning.recheck import recheck

    with progress(1) as say:
        found = recheck(
            Database(database),
            None if measurer is None else measurer.target,
            measurer=measurer,
            progress=lambda record, number, total: say(f"{number + 1}/{total} {record.bucket}"),
        )
    if not found:
        raise ValueError("nothing was checked: no record here claims to beat a default")
    if json:
        show_json(verdicts_json(found))
    else:
        show(verdicts(found))
    if any(verdict.bad for verdict in found):
        raise typer.Exit(1)
