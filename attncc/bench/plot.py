"""The roofline of a suite's run: arithmetic intensity against rate, each case a point under the limits it was given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attncc.bench.cases import Case
from attncc.bench.peak import Peak
from attncc.bench.run import OURS

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

    drawn = [row for row in rows if any(result.seconds(OURS) for result in row.results)]
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    dtypes: dict[str, None] = {}
    for row, marker in zip(drawn, MARKERS * 2, strict=False):
        label: str | None = row.row.name
        for result in row.results:
            dtypes.setdefault(result.case.dtype)
            for name, size in ((PEER, 22), (OURS, 30)):
                seconds = result.seconds(name)
                if seconds is None:
                    continue
                color = COLORS[result.case.dtype]
                filled = name == OURS
                axes.scatter(
                    result.case.flops / result.case.bytes_moved,
                    result.case.flops / seconds / 1e9,
                    s=size,
                    marker=marker,
                    facecolors=color if filled else "none",
                    edgecolors="white" if filled else color,
                    linewidths=0.4 if filled else 0.7,
                    alpha=0.95 if filled else 0.55,
                    zorder=3 if filled else 2,
                    label=None,
                )
        axes.scatter([], [], marker=marker, color="#444444", s=30, label=label)
    _limits(axes, [result.peak for row in drawn for result in row.results], dtypes)
    axes.set_xlabel("arithmetic intensity: operations a byte of q, k, v and output")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(
        f"{machine['cpu']}, {machine['threads']} threads: attncc (filled) and SDPA (hollow)", loc="left", fontsize=11
    )
    axes.grid(True, which="major", color="#dddddd", linewidth=0.6, zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _limits(axes: Any, peaks: Sequence[Peak], dtypes: Sequence[str] | dict[str, None]) -> None:
    """The roof of each dtype: the best peak and bandwidth of the run."""
    import numpy as np

    if not peaks:
        return
    lo, hi = axes.get_xlim()
    read = max(peak.read_gbs for peak in peaks)
    intensity = np.geomspace(lo, hi, 200)
    shown: set[float] = set()
    for dtype in dtypes:
        top = max(peak.gflops(dtype) for peak in peaks)
        if top in shown:
            continue
        shown.add(top)
        axes.plot(intensity, np.minimum(read * intensity, top), color=COLORS[dtype], linewidth=1.2, zorder=1)
        axes.annotate(
            f"{dtype} peak {top:.0f} GFLOP/s", (hi, top), xytext=(-4, 4), textcoords="offset points", ha="right",
            color=COLORS[dtype], fontsize=9,
        )  # fmt: skip
    axes.annotate(
        f"read bandwidth {read:.0f} GB/s", (lo, read * lo), xytext=(10, 24), textcoords="offset points",
        color="#444444", fontsize=9,
    )  # fmt: skip
    axes.set_xlim(lo, hi)


def intensity(case: Case) -> float:
    """Operations a byte that has to be moved at least."""
    return case.flops / case.bytes_moved
