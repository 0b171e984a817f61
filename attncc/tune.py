"""`attncc.tune`: search better schedule decisions for the attention of a model, on the machine at hand."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncc.tuning.measure import Measurer
    from attncc.tuning.result import Tuned
    from attncc.tuning.session import Say


def tune(
    model: Any,
    *args: Any,
    kwargs: Mapping[str, Any] | None = None,
    trials: int = 64,
    seconds: float | None = None,
    database: str | PathLike[str] | None = None,
    measurer: Measurer | None = None,
    progress: Say | None = None,
    seed: int = 0,
) -> Tuned:
    """Tune every attention of one call of `model`; from then on each process of this user runs what was found.

    Args:
        model: what `attncc.compile` takes, compiled already or not. It is called once, without gradients.
        args: its arguments: a prompt for prefill, a single token with its cache for decode.
        kwargs: its keyword arguments.
        trials: candidates for each attention, those counted that an earlier run has measured.
        seconds: when to end, whatever is left to try.
        database: the file of records; the user's own by default.
        measurer: who measures; this machine's CPU by default, its NVIDIA GPU where it is an
            `attncc.tuning.cuda_local.CudaMeasurer()` (the model and its inputs stay on the CPU).
        progress: called after each trial with an `attncc.tuning.session.Progress`; by default a line on the terminal,
            where there is one, says where the run stands.
        seed: of the search; equal seeds try the same candidates where times are the same.

    Returns:
        What was found: `print` shows a table, `.html(path)` writes a report.

    Raises:
        ImportError: a package of `attncc[tune]` is missing. Whatever the model raises.
    """
    from attncc.cli._tuning import progress as shown
    from attncc.target import detect
    from attncc.tuning.run import tune_tasks
    from attncc.tuning.search import Budget
    from attncc.tuning.workload import of_model

    target, threads = (detect(), None) if measurer is None else (measurer.target, measurer.threads)
    quiet = progress is not None or not sys.stderr.isatty()
    with nullcontext(progress) if quiet else shown() as say:
        tasks = of_model(model, args, kwargs or {}, target, threads)
        return tune_tasks(tasks, Budget(trials, seconds), database, measurer, say, seed)
