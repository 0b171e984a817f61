"""Benchmark of one case: every contender is checked against float64 before any of them is timed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import attncc
from attncc._rich import table, to_text
from attncc.bench.cases import Case, reference
from attncc.bench.contenders import CONTENDERS, Attention
from attncc.bench.peak import Peak
from attncc.bench.timing import Timing, interleaved

OURS = "attncc"
BASE = "sdpa"


@dataclass(frozen=True)
class Entry:
    """One contender on one case."""

    name: str
    failure: str = ""
    """Why it did not run; empty where it did."""
    first_call: float = 0.0
    """Seconds of the first call, compilation included."""
    error: float = math.nan
    """Largest absolute difference from float64."""
    timing: Timing | None = None


@dataclass(frozen=True)
class Result:
    """All contenders on one case."""

    case: Case
    entries: tuple[Entry, ...]
    bound: float
    """Error allowed to attncc: twice SDPA's (eager's where SDPA did not run) + 2 ulp of max|v|."""
    peak: Peak

    @property
    def passed(self) -> bool:
        """Whether attncc ran and is as exact as it must be. No time is taken where it is not."""
        ours = [e for e in self.entries if e.name == OURS]
        return all(not e.failure and e.error <= self.bound for e in ours)  # NaN is not within any bound

    def share(self, seconds: float) -> tuple[str, float]:
        """What limits this case, as "peak" or "bandwidth", and the share of it that a call of `seconds` reaches."""
        if self.case.decode:
            return "bandwidth", self.case.bytes_read / seconds / 1e9 / self.peak.read_gbs
        return "peak", self.case.flops / seconds / 1e9 / self.peak.gflops(self.case.dtype)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        entries = []
        for entry in self.entries:
            data = asdict(entry) | {"error": None if math.isnan(entry.error) else entry.error}
            if entry.timing is not None:
                limit, share = self.share(entry.timing.median)
                data |= {"limit": limit, "share": share}
            entries.append(data)
        return {"case": asdict(self.case), "passed": self.passed, "error_bound": self.bound, "contenders": entries}

    def __str__(self) -> str:
        return to_text(self)

    def __rich__(self) -> RenderableType:
        rows = table(
            self.case.label, "", "error", "median", "range", "against SDPA", "rate", "of measured", "first call"
        )
        for column in rows.columns[1:]:
            column.justify = "right"
        times = {e.name: e.timing for e in self.entries}
        for entry in self.entries:
            self._add_row(rows, entry, times.get(BASE))
        notes = [Text(f"{entry.name} failed: {entry.failure}") for entry in self.entries if entry.failure]
        if not self.passed:
            verdict = f"{OURS} is outside the error bound {self.bound:.1e} or failed: nothing is timed"
            notes.append(Text(verdict, style="bold red"))
        return Group(rows, *notes)

    def _add_row(self, rows: Table, entry: Entry, base: Timing | None) -> None:
        if entry.failure:
            rows.add_row(entry.name, "failed")
            return
        cells = [entry.name, f"{entry.error:.1e}"]
        if entry.timing is not None:
            seconds = entry.timing.median
            limit, share = self.share(seconds)
            rate = (
                f"{self.case.bytes_read / seconds / 1e9:.3g} GB/s"
                if self.case.decode
                else f"{self.case.flops / seconds / 1e9:.3g} GFLOP/s"
            )
            cells += [_ms(seconds), f"{_ms(entry.timing.fastest)} to {_ms(entry.timing.slowest)}"]
            cells += [f"{base.median / seconds:.2f}x" if base else "", rate, f"{share:.0%} {limit}"]
        else:
            cells += [""] * 5
        rows.add_row(*cells, f"{entry.first_call:.2f} s", style="bold" if entry.name == OURS else "")


@torch.inference_mode()
def run(
    case: Case,
    peak: Peak,
    *,
    names: Sequence[str] = tuple(CONTENDERS),
    turns: int = 9,
    seconds: float = 0.1,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Check the contenders `names` against float64 on `case`, then time them interleaved.

    A contender that raises is reported with its message and left out. `say` hears what is being done, `steps` times
    where all run. Raises KeyError for an unknown name.
    """
    say = say or (lambda _: None)
    q, k, v = case.inputs()
    say(f"{case.label}: reference in float64")
    exact = reference(case, q, k, v)
    entries, calls = {}, {}
    for name in names:
        say(f"{case.label}: checking {name}")
        entries[name], attention = _check(name, case, (q, k, v), exact)
        if attention is not None:
            calls[name] = lambda attention=attention: attention(q, k, v)
    bound = _bound(entries, v)
    checked = Result(case, tuple(entries.values()), bound, peak)
    if not checked.passed:
        return checked
    timings = interleaved(
        calls, turns=turns, seconds=seconds, progress=lambda name: say(f"{case.label}: timing {name}")
    )
    timed = tuple(Entry(**{**vars(entry), "timing": timings.get(name)}) for name, entry in entries.items())
    return Result(case, timed, bound, peak)


def to_json(peak: Peak, results: Sequence[Result], **more: Any) -> str:
    """A whole run as JSON text, with `more` of it by name."""
    data = {"peak": peak.to_json(), "results": [result.to_json() for result in results], **more}
    return json.dumps(data, indent=2)


def steps(names: Sequence[str], turns: int) -> int:
    """How often `run` calls `say`."""
    return 1 + len(names) * (1 + turns)


def _check(
    name: str, case: Case, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor], exact: torch.Tensor
) -> tuple[Entry, Attention | None]:
    """The first call of a contender and its error; the contender itself unless it failed."""
    build = CONTENDERS[name]
    torch._dynamo.reset()  # compiled contenders share code objects: many cases would run into the recompile limit
    start = time.perf_counter()
    try:
        attention = build(case)
        before = attncc.stats().fallbacks
        out = attention(*inputs)
        if attncc.stats().fallbacks > before:
            raise RuntimeError("no kernel: it ran as PyTorch")
    except Exception as error:  # whatever a compiler raises, the other contenders go on
        return Entry(name, failure=_first_line(error)), None
    first = time.perf_counter() - start
    difference = (out.double() - exact).abs().max().item()
    return Entry(name, first_call=first, error=difference), attention


def _bound(entries: dict[str, Entry], v: torch.Tensor) -> float:
    """Twice the error of SDPA, else of eager, + 2 ulp of max|v|."""
    errors = [entries[name].error for name in (BASE, "eager") if name in entries and not entries[name].failure]
    ulp: float = torch.finfo(v.dtype).eps * 2.0 ** math.floor(math.log2(v.abs().max().item()))
    return 2 * (errors[0] if errors else 0.0) + 2 * ulp


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}"[:160] if text else type(error).__name__


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
