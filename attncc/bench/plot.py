"""The roofline of a suite's run: arithmetic intensity against rate, each case a point under the limits it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attncc.bench.cases import Case
from attncc.bench.run import OURS, Result

if TYPE_CHECKING:
    from attncc.bench.suite import Measured

COLORS = {"float32": "#1f5fa8", "bfloat16": "#c8452d", "float16": "#7a4fa3", "float64": "#5a6b2f"}
MARKERS = "osD^vP*XphH<>"
PEER = "sdpa"


def require() -> None:
    """Raise ValueError where there is no matplotlib to draw with."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError("--plot needs matplotlib: pip install attncc[bench]") from None


def roofline(rows: Sequence[Measured], machine: dict[str, Any], path: Path) -> None:
    """Draw all cases that were timed to `path`, in the format of its suffix: attncc filled, SDPA hollow.

    A point that lies above the slope was read from a cache, not from memory.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    drawn = [(row.row.name, result) for row in rows for result in row.results if result.seconds(OURS)]
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    _limits(axes, [result for _, result in drawn])
    names = list(dict.fromkeys(name for name, _ in drawn))
    markers = dict(zip(names, MARKERS * 2, strict=False))
    for name, result in drawn:
        _point(axes, result, markers[name])
    keys = [axes.scatter([], [], marker=markers[name], color="#555555", s=34, label=name) for name in names]
    kinds = dict.fromkeys(result.case.dtype for _, result in drawn)
    keys += [axes.scatter([], [], marker="s", color=COLORS[kind], s=34, label=kind) for kind in kinds]
    axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("operations a byte of q, k, v and output")
    axes.set_ylabel("GFLOP/s")
    title = f"{machine['cpu']}, {machine['threads']} threads: attncc filled, SDPA hollow"
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, which="major", color="#e6e6e6", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)


def _point(axes: Any, result: Result, marker: str) -> None:
    """A case as two points, one above the other, and the line between them."""
    color, x = COLORS[result.case.dtype], intensity(result.case)
    ours, theirs = (_gflops(result, name) for name in (OURS, PEER))
    if theirs is not None:
        axes.plot([x, x], [theirs, ours], color=color, linewidth=0.6, alpha=0.3, zorder=2)
        axes.scatter(x, theirs, s=20, marker=marker, facecolors="white", edgecolors=color, linewidths=0.7, zorder=3)
    axes.scatter(x, ours, s=34, marker=marker, color=color, edgecolors="white", linewidths=0.4, zorder=4)


def _gflops(result: Result, name: str) -> float | None:
    seconds = result.seconds(name)
    return None if seconds is None else result.case.flops / seconds / 1e9


def _limits(axes: Any, results: Sequence[Result]) -> None:
    """The roof of each dtype, of the best peak and bandwidth of the run, over a range that holds all cases."""
    import numpy as np

    found = [intensity(result.case) for result in results]
    lo, hi = 0.6 * min(found, default=1.0), 1.7 * max(found, default=1.0)
    axes.set_xlim(lo, hi)
    read = max((result.peak.read_gbs for result in results), default=1.0)
    roofs: dict[float, list[str]] = {}
    for dtype in dict.fromkeys(result.case.dtype for result in results):
        roofs.setdefault(max(result.peak.gflops(dtype) for result in results), []).append(dtype)
    x = np.geomspace(lo, hi, 400)
    for top, dtypes in roofs.items():
        color = COLORS[dtypes[0]]
        axes.plot(x, np.minimum(read * x, top), color=color, linewidth=1.3, zorder=1)
        text = f"{' and '.join(dtypes)}: {top:.0f} GFLOP/s"
        axes.annotate(text, (1.25 * top / read, top), (0, 4), textcoords="offset points", color=color, fontsize=9)
    middle = (lo * min(roofs, default=read) / read) ** 0.5
    text = f"{read:.0f} GB/s read from memory"
    axes.annotate(
        text, (middle, read * middle), (-8, 2), textcoords="offset points", ha="right", color="#555555", fontsize=9
    )


def intensity(case: Case) -> float:
    """Operations a byte that has to be moved at least."""
    return case.flops / case.bytes_moved
