"""The HTML report of a run: one file with its pictures inside, which can be mailed or attached to an issue."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from attncc.tuning import roofline
from attncc.tuning.result import Tuned, changed, duration, seconds_of
from attncc.tuning.search import Search

if TYPE_CHECKING:
    from attncc.bench.peak import Peak

DEFAULT, BEST, SDPA, FAILED = "#8a8a8a", "#1f5fa8", "#c8452d", "#d9a400"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 2.5rem 0 .3rem }
table { border-collapse: collapse; margin: 1rem 0 } th { font-weight: 600; text-align: left }
td, th { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #e5e5e5; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums } .dim { color: #777 } code { font-size: .9em }
svg { max-width: 100%; height: auto }
"""


def require() -> None:
    """Raise ImportError where there is no matplotlib to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("--report needs matplotlib: pip install 'attncc[tune]'") from None


def page(tuned: Tuned) -> str:
    """The report of a run. Raises ImportError without matplotlib."""
    require()
    parts = [
        f"<h1>attncc tune: {escape(str(tuned.target))}</h1>",
        f"<p>{len(tuned.searches)} tasks, {tuned.measured} candidates measured in {tuned.session.seconds:.0f} s. "
        f"Records: <code>{escape(str(tuned.database))}</code></p>",
        _overview(tuned.searches),
        *[f"<p>{escape(task)} was not tuned: {escape(reason)}</p>" for task, reason in tuned.session.skipped],
    ]
    if tuned.session.peak is not None and tuned.searches:
        parts.append("<h2>Roofline</h2><p>Each task's default (grey) and what it takes now (blue), SDPA in red.</p>")
        parts.append(_roofline(tuned.searches, tuned.session.peak))
    parts += [_section(state) for state in tuned.searches]
    head = f"<meta charset=utf-8><title>attncc tune</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _overview(searches: Sequence[Search]) -> str:
    head = ("task", "calls", "default", "now", "gain", "SDPA", "SDPA / now", "of the machine", "trials", "took")
    rows = []
    for state in searches:
        now, sdpa = seconds_of(state), None if state.sdpa is None else state.sdpa.seconds
        gain = "" if state.winner is None else f"{state.winner.gain or 0.0:+.1%}"
        rows.append((
            str(state.task), str(state.task.calls), duration(state.default.seconds), duration(now), gain,
            duration(sdpa), "" if sdpa is None else f"{sdpa / now:.2f}",
            "" if state.floor is None else f"{state.floor[0] / now:.0%} of {state.floor[1]}",
            f"{len(state.trials)} of {state.task.points}", f"{state.seconds:.0f} s",
        ))  # fmt: skip
    return _table(head, rows)


def _section(state: Search) -> str:
    """One task: its curve, what the winner decides otherwise than the default, and what failed."""
    parts = [f"<h2>{escape(str(state.task))}</h2>", f'<p class="dim">{escape(str(state.task.spec))}</p>', _curve(state)]
    if state.winner is None:
        parts.append("<p>Nothing beat the default by more than the noise, so it stays.</p>")
    else:
        spread = f"quartiles {state.winner.spread or 0.0:.1%} apart"
        parts.append(f"<p>The winner is {state.winner.gain or 0.0:.1%} faster than the default ({spread}):</p>")
        rows = [(f"<code>{name}</code>", str(old), str(new)) for name, (old, new) in changed(state).items()]
        parts.append(_table(("decision", "default", "winner"), rows, raw=True))
    failures: dict[str, int] = {}
    for trial in state.failures:
        failures[trial.outcome.failure] = failures.get(trial.outcome.failure, 0) + 1
    if failures:
        parts.append(_table(("failed", "candidates"), [(reason, str(count)) for reason, count in failures.items()]))
    return "".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    def cell(text: str, first: bool) -> str:
        return f"<td>{text if raw else escape(text)}</td>" if first else f'<td class="n">{escape(text)}</td>'

    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(cell(text, n == 0) for n, text in enumerate(row))}</tr>" for row in rows)
    return f"<table><tr>{titles}</tr>{body}</table>"


def _curve(state: Search) -> str:
    """Every trial as a point, the best so far as a line, the default and SDPA as levels."""
    figure, axes = _figure(7.5, 2.6)
    unit, scale = _unit(state.default.seconds or 1.0)
    times = [trial.outcome.seconds for trial in state.trials]
    at = [n for n, seconds in enumerate(times, 1) if seconds is not None]
    points = [seconds / scale for seconds in times if seconds is not None]
    axes.scatter(at, points, s=9, color=BEST, alpha=0.35, linewidths=0)
    best, line = float("inf"), []
    for seconds in points:
        best = min(best, seconds)
        line.append(best)
    axes.step(at, line, where="post", color=BEST, linewidth=1.6, label="best so far")
    axes.axhline((state.default.seconds or 0.0) / scale, color=DEFAULT, linewidth=1.2, label="default")
    if state.sdpa is not None and state.sdpa.seconds is not None:
        axes.axhline(state.sdpa.seconds / scale, color=SDPA, linewidth=1.2, linestyle="--", label="SDPA")
    failed = [n for n, seconds in enumerate(times, 1) if seconds is None]
    if failed:
        axes.scatter(failed, [max(points, default=1.0)] * len(failed), marker="x", s=22, color=FAILED, label="failed")
    axes.set_xlabel("trial")
    axes.set_ylabel(f"{unit} a call")
    axes.set_ylim(bottom=0)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return _svg(figure)


def _roofline(searches: Sequence[Search], peak: Peak) -> str:
    import numpy as np

    figure, axes = _figure(8.5, 4.2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    found = []
    for state in searches:
        work, moved = roofline.flops(state.task), roofline.moved(state.task)
        found.append(work / moved)
        sdpa = None if state.sdpa is None else state.sdpa.seconds
        levels = ((state.default.seconds, DEFAULT), (seconds_of(state), BEST), (sdpa, SDPA))
        heights = [(work / seconds / 1e9, color) for seconds, color in levels if seconds]
        axes.plot([found[-1]] * len(heights), [y for y, _ in heights], color="#cccccc", linewidth=0.8, zorder=1)
        axes.scatter([found[-1]] * len(heights), [y for y, _ in heights], s=26, color=[c for _, c in heights], zorder=2)
    x = np.geomspace(min(found) / 2, max(found) * 2, 200)
    for top, name in dict.fromkeys((peak.gflops(s.task.spec.dtype), s.task.spec.dtype) for s in searches):
        axes.plot(x, np.minimum(peak.read_gbs * x, top), color="#444444", linewidth=1)
        axes.annotate(
            f"{name} {top:.0f} GFLOP/s", (x[-1], top), (0, 3), textcoords="offset points", ha="right", fontsize=8
        )
    axes.set_xlabel("operations a byte of q, k, v and output")
    axes.set_ylabel("GFLOP/s")
    return _svg(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(True, which="major", color="#eeeeee", linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    """A picture as the text that HTML takes: the element alone, without the head of a file."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :]


def _unit(seconds: float) -> tuple[str, float]:
    return ("ms", 1e-3) if seconds >= 1e-3 else ("µs", 1e-6)
