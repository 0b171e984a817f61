"""What a sweep found, for people (`Rich` tables) and for programs (a dictionary)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

Row = dict[str, Any]
NEAR = 1e-5
"""Relative difference to eager float32 up to which nothing further is asked."""


def summary(rows: list[Row]) -> dict[str, Any]:
    """By implementation: types tried, ran, sites, fused, wrong, what is not fused and why, what did not run and why."""
    by_implementation: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_implementation[row["implementation"]].append(row)
    return {name: _summary(group) for name, group in by_implementation.items()}


def _summary(rows: list[Row]) -> dict[str, Any]:
    ran = [r for r in rows if "error" not in r]
    reasons: dict[str, dict[str, int]] = defaultdict(dict)
    for row in ran:
        for reason, count in row["reasons"].items():
            reasons[reason][row["model"]] = count
    left: dict[str, dict[str, int]] = defaultdict(dict)
    for row in ran:
        lines = row.get("left", {})
        if sum(lines.values()) > sum(row["reasons"].values()):  # else each has its reason
            for line, count in lines.items():
                left[line][row["model"]] = count
    not_run: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if "error" in row:
            not_run[f"{row.get('stage', 'build')}: {_cause(row['error'])}"].append(row["model"])
    return {
        "tried": len(rows),
        "ran": len(ran),
        "with attention": sum(r["softmaxes"] > 0 or r["found"] > 0 for r in ran),
        "sites": sum(r["found"] for r in ran),
        "fused": sum(r["fused"] for r in ran),
        "calls": sum(r["calls"] for r in ran),
        "wrong": [r["model"] for r in ran if verdict(r) == "wrong"],
        "not judged": [r["model"] for r in ran if verdict(r) == "not judged"],
        "warnings": {r["model"]: r["warnings"] for r in ran if r["warnings"]},
        "not fused": dict(reasons),
        "left": dict(left),
        "not run": dict(not_run),
    }  # fmt: skip


def verdict(row: Row) -> str:
    """Whether a model computes the same: "right", "wrong", or "not judged" where it says nothing.

    Wrong is what lies farther from eager float32 than rounding explains, and farther from eager float64 than eager
    float32 does. A model that draws random numbers, or whose float64 is not comparable, cannot be judged like that.
    """
    if row["difference"] < NEAR:
        return "right"
    ours, eager = row.get("to_float64", (row["difference"], 0.0))
    if row.get("again", 0) >= NEAR or not math.isfinite(eager):
        return "not judged"
    return "right" if ours <= 2 * eager + NEAR else "wrong"


def _cause(error: str) -> str:
    """The first failure of a model, without what is particular to it."""
    first = error.removeprefix("RuntimeError: ").split("; ")[0].split("\n")[0]
    return "too large" if "million parameters" in first else first[:90]


def show(rows: list[Row]) -> None:
    """Print `summary`."""
    from rich.console import Console
    from rich.table import Table

    console, found = Console(), summary(rows)
    counts = ("tried", "ran", "with attention", "sites", "fused", "calls")
    table = Table("as", *counts, "wrong", "not judged")
    for name, s in found.items():
        table.add_row(
            name, *(str(s[c]) for c in counts), ", ".join(s["wrong"]) or "0", ", ".join(s["not judged"]) or "0"
        )
    console.print(table)
    for name, s in found.items():
        _list(console, f"{name}: not fused", {reason: list(models) for reason, models in s["not fused"].items()})
        _list(console, f"{name}: softmaxes that are not seen as attention", {w: list(m) for w, m in s["left"].items()})
        _list(console, f"{name}: not run", s["not run"])


def _list(console: Any, title: str, groups: dict[str, list[str]]) -> None:
    lines = Counter({reason: len(models) for reason, models in groups.items()}).most_common()
    if any(count for _, count in lines):
        console.rule(title, align="left")
    for reason, count in lines:
        if count:
            console.print(f"{count:4}  {reason}  [dim]{', '.join(groups[reason])}[/dim]")
