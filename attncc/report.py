"""What `attncc.explain` returns: one `Site` per attention of a model, fused or not, and why."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attncc.spec import AttentionSpec

if TYPE_CHECKING:
    from attncc.repro import Program


@dataclass(frozen=True)
class Site:
    """One softmax between two contractions, and what became of it."""

    fused: bool
    location: str
    """The user's file and line: `model.py:41`."""
    source: str
    """That line of code."""
    reason: str = ""
    """Why it was not fused; empty where it was."""
    next_step: str = ""
    """What to do about that."""
    spec: AttentionSpec | None = None
    """What was recognised; None where nothing was."""
    sizes: dict[str, int | str] | None = None
    """B, H, Sq, Skv of this call; a symbol where a size is dynamic."""
    kernel: str = ""
    """The schedule family that runs this call, such as `cpu.prefill.fp32`."""
    regime: str = ""
    """`prefill`, `decode` or `any`."""
    decisions: str = ""
    """Where the kernel's schedule decisions come from, such as "analytic default" or "tuned 2026-11-23 for …"."""
    backward: str = ""
    """How gradients are computed where they are asked for."""
    program: Program | None = field(default=None, repr=False, compare=False)
    """The graph that it was found in, for `write_repro`."""

    def write_repro(self, path: str | Path) -> Path:
        """Write the site as a script that runs it on random tensors of the recorded shapes, strides and dtypes.

        The script prints the report of the site and how far PyTorch and attncc are from a float64 evaluation. Raises
        ValueError for a site that does not come from `attncc.explain`, or whose operators cannot be cut out.
        """
        if self.program is None:
            raise ValueError("write_repro needs a site of attncc.explain, which keeps the graph")
        what = str(self.spec) if self.fused else f"not fused: {self.reason}"
        text = self.program.script(f"{self.location}: {self.source}\n\n{what}\n")
        Path(path).write_text(text, encoding="utf-8")
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("spec", "program")}
        return data | {"spec": json.loads(self.spec.json) if self.spec else None, "meaning": str(self.spec or "")}


@dataclass(frozen=True)
class Report:
    """Every attention site of one call of a model."""

    sites: tuple[Site, ...]
    graphs: int = 0
    """Graphs that Dynamo captured: more than one means graph breaks."""
    compile_seconds: float = 0.0
    """Tracing, rewriting and checking, kernels not included."""

    @property
    def fused(self) -> int:
        """Number of sites that run as one kernel."""
        return sum(site.fused for site in self.sites)

    def to_json(self) -> str:
        """The whole report as JSON text."""
        data = {"fused": self.fused, "found": len(self.sites), "graphs": self.graphs}
        sites = [site.to_dict() for site in self.sites]
        return json.dumps(data | {"compile_seconds": round(self.compile_seconds, 3), "sites": sites}, indent=2)

    def __str__(self) -> str:
        buffer = io.StringIO()
        Console(file=buffer, width=118, color_system=None, highlight=False).print(self)
        return buffer.getvalue().rstrip()

    def __rich__(self) -> Table:
        headline = f"attention sites: {len(self.sites)} found, {self.fused} fused"
        headline += f"   ({_plural(self.graphs, 'graph')}, compiled in {self.compile_seconds:.2f} s)"
        if self.graphs > 1 and self.fused < len(self.sites):
            headline += "\nthe model breaks into several graphs, and no attention is fused across: "
            headline += "TORCH_LOGS=graph_breaks shows where"
        table = Table(box=SIMPLE_HEAD, title=headline, title_justify="left", title_style="bold", pad_edge=False)
        for column in ("where", "what was recognised, or why not", "kernel"):
            table.add_column(column, overflow="fold")
        for sites in _alike(self.sites):
            table.add_row(*_row(sites))
        if not self.sites:
            table.add_row("", "no softmax between two contractions was found", "")
        return table


def _alike(sites: Sequence[Site]) -> list[list[Site]]:
    """Sites that read the same, such as the layers of one model, in order of their first appearance."""
    groups: dict[Any, list[Site]] = {}
    for site in sites:
        key = (site.location, site.reason, site.spec, site.kernel, site.decisions, json.dumps(site.sizes))
        groups.setdefault(key, []).append(site)
    return list(groups.values())


def _row(sites: list[Site]) -> tuple[Text, Text, Text]:
    site = sites[0]
    times = f" × {len(sites)}" if len(sites) > 1 else ""
    where = Text(f"{site.location}{times}\n").append(site.source, style="dim")
    if not site.fused:
        why = Text(f"not fused: {site.reason}", style="yellow")
        if site.next_step:
            why.append(f"\n→ {site.next_step}", style="default")
        return where, why, Text("PyTorch, as written")
    what = Text(str(site.spec))
    if site.sizes:
        what.append("\n" + ", ".join(f"{name}={size}" for name, size in site.sizes.items()), style="dim")
    kernel = Text(site.kernel, style="green")
    if site.decisions:
        kernel.append(f"\n{site.decisions}", style="dim")
    if site.backward:
        kernel.append(f"\nbackward: {site.backward}", style="dim")
    return where, what, kernel


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
