"""Benchmark of one case: every contender is checked against float64 before any of them is timed."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Self

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

import attncc
from attncc._rich import table, to_text
from attncc.bench.cases import Case, reference
from attncc.bench.contenders import CONTENDERS, DEFAULT, Attention
from attncc.bench.engines import Absent
from attncc.bench.peak import Peak
from attncc.bench.timing import Timing, interleaved

OURS = "attncc"
BASE = "sdpa"
WRONG = 50
"""Times the error bound of attncc, beyond which a peer's result is not that attention (bfloat16 products of what was
given in float16 are)."""
Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


OF_OURS = (OURS, "captured")


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
    case: Case | None = None
    """What attncc computed instead, where this is a variant that the case is held against."""
    bound: float = math.inf
    """Error allowed; infinite for contenders that are not attncc's."""

    @property
    def ours(self) -> bool:
        """Whether attncc computed it, and so answers for it."""
        return self.case is not None or self.name in OF_OURS

    @property
    def passed(self) -> bool:
        """Whether it ran and is as exact as it must be."""
        return not self.failure and self.error <= self.bound  # NaN is not within any bound


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
        return all(entry.passed for entry in self.entries if entry.ours)

    def entry(self, name: str) -> Entry | None:
        """The contender of that name, where it took part."""
        return next((entry for entry in self.entries if entry.name == name), None)

    def seconds(self, name: str) -> float | None:
        """The median time of a contender, where it was timed."""
        entry = self.entry(name)
        return None if entry is None or entry.timing is None else entry.timing.median

    def share(self, seconds: float, case: Case | None = None) -> tuple[str, float]:
        """What limits this case, as "peak" or "bandwidth", and the share of it that a call of `seconds` reaches."""
        case = case or self.case
        if case.decode:
            return "bandwidth", case.bytes_read / seconds / 1e9 / self.peak.read_gbs
        return "peak", case.flops / seconds / 1e9 / self.peak.gflops(case.dtype)

    @property
    def beyond_peak(self) -> bool:
        """Whether something computed faster than the machine can: then the peak was measured in a bad moment."""
        timed = [entry for entry in self.entries if entry.timing is not None and entry.ours]
        shares = [self.share(entry.timing.median, entry.case) for entry in timed if entry.timing is not None]
        return any(limit == "peak" and share > 1.0 for limit, share in shares)

    def to_json(self) -> dict[str, Any]:
        """Plain data for JSON."""
        entries = []
        for entry in self.entries:
            data = asdict(entry) | {"case": None if entry.case is None else asdict(entry.case)}
            data |= {
                name: value if math.isfinite(value) else None for name in ("error", "bound") if (value := data[name])
            }
            if entry.timing is not None:
                limit, share = self.share(entry.timing.median, entry.case)
                data |= {"limit": limit, "share": share}
            entries.append(data)
        head = {"case": asdict(self.case), "passed": self.passed, "error_bound": self.bound}
        return head | {"contenders": entries, "peak": self.peak.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What `to_json` gave."""
        entries = []
        for given in data["contenders"]:
            entry = {name: value for name, value in given.items() if name not in ("limit", "share")}
            entry["error"] = math.nan if entry["error"] is None else entry["error"]
            entry["bound"] = math.inf if entry["bound"] is None else entry["bound"]
            entry["case"] = None if entry["case"] is None else Case(**entry["case"])
            entry["timing"] = None if entry["timing"] is None else Timing(**entry["timing"])
            entries.append(Entry(**entry))
        return cls(Case(**data["case"]), tuple(entries), data["error_bound"], Peak(**data["peak"]))

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
        notes = [Text(f"{entry.name}: {entry.failure}") for entry in self.entries if entry.failure]
        if not self.passed:
            verdict = f"{OURS} is outside the error bound {self.bound:.1e} or failed: nothing is timed"
            notes.append(Text(verdict, style="bold red"))
        return Group(rows, *notes)

    def _add_row(self, rows: Table, entry: Entry, base: Timing | None) -> None:
        if entry.failure:
            rows.add_row(entry.name, "-")
            return
        cells = [entry.name, f"{entry.error:.1e}"]
        if entry.timing is not None:
            seconds, case = entry.timing.median, entry.case or self.case
            limit, share = self.share(seconds, case)
            rate = (
                f"{case.bytes_read / seconds / 1e9:.3g} GB/s"
                if case.decode
                else f"{case.flops / seconds / 1e9:.3g} GFLOP/s"
            )
            cells += [duration(seconds), f"{duration(entry.timing.fastest)} to {duration(entry.timing.slowest)}"]
            cells += [f"{base.median / seconds:.2f}x" if base else "", rate, f"{share:.0%} {limit}"]
        else:
            cells += [""] * 5
        rows.add_row(*cells, f"{entry.first_call:.2f} s", style="bold" if entry.name == OURS else "")


@torch.inference_mode()
def run(
    case: Case,
    peak: Peak,
    *,
    names: Sequence[str] = DEFAULT,
    variants: Mapping[str, Case] = MappingProxyType({}),
    turns: int = 9,
    seconds: float = 0.1,
    patience: float = math.inf,
    expected: Callable[[str], float] = lambda name: 0.0,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Check the contenders `names` against float64 on `case`, then time them interleaved.

    `variants` are cases that attncc computes in the same turns, checked likewise, to hold `case` against. A contender
    that raises is reported with its message and left out; so is one whose `expected` seconds a call exceed `patience`.
    `say` hears what is being done, `steps` times where all run. Raises KeyError for an unknown name.
    """
    say = say or (lambda _: None)
    say(f"{case.label}: reference in float64")
    inputs = case.inputs()
    exact = reference(case, *inputs)
    bound = _bound(case, inputs, exact)
    entries, calls = {}, {}
    for name in names:
        say(f"{case.label}: checking {name}")
        if name != OURS and expected(name) > patience:
            entries[name] = Entry(name, failure=f"not run: about {expected(name):.1f} s a call")
            continue
        entry, call = _check(CONTENDERS[name], Entry(name), case, inputs, exact)
        entries[name] = replace(entry, bound=bound) if entry.ours else _plausible(entry, bound)
        if call is not None and not entries[name].failure:
            calls[name] = call
    for name, other in variants.items():
        say(f"{case.label}: checking {name}")
        inputs = other.inputs()
        exact = reference(other, *inputs)
        entry, call = _check(CONTENDERS[OURS], Entry(name, case=other), other, inputs, exact)
        entries[name] = replace(entry, bound=_bound(other, inputs, exact))
        if call is not None:
            calls[name] = call
    checked = Result(case, tuple(entries.values()), bound, peak)
    if not checked.passed:
        return checked
    timings = interleaved(
        calls,
        turns=turns,
        seconds=seconds,
        patience=patience,
        progress=lambda name: say(f"{case.label}: timing {name}"),
    )
    timed = tuple(replace(entry, timing=timings.get(name)) for name, entry in entries.items())
    return Result(case, timed, bound, peak)


def require_exact(case: Case, inputs: Inputs) -> None:
    """Raise RuntimeError where `attncc.attention` is outside its error bound on these inputs of `case`."""
    exact = reference(case, *inputs)
    entry, _ = _check(CONTENDERS[OURS], Entry(OURS), case, inputs, exact)
    bound = _bound(case, inputs, exact)
    if not replace(entry, bound=bound).passed:
        raise RuntimeError(f"{case.label}: {entry.failure or f'error {entry.error:.1e} of {bound:.1e} allowed'}")


def to_json(peak: Peak, results: Sequence[Result], **more: Any) -> str:
    """A whole run as JSON text, with `more` of it by name."""
    data = {"peak": peak.to_json(), "results": [result.to_json() for result in results], **more}
    return json.dumps(data, indent=2)


def steps(names: Sequence[str], turns: int, variants: Sequence[str] = ()) -> int:
    """How often `run` calls `say`, at most."""
    return 1 + (len(names) + len(variants)) * (1 + turns)


def _check(
    build: Callable[[Case], Attention], entry: Entry, case: Case, inputs: Inputs, exact: tuple[torch.Tensor, ...]
) -> tuple[Entry, Callable[[], Any] | None]:
    """The first call of a contender and its error; the call itself unless it failed."""
    torch._dynamo.reset()  # compiled contenders share code objects: many cases would run into the recompile limit
    start = time.perf_counter()
    try:
        attention = build(case)
        before = attncc.stats()
        out = attention(*inputs)
        after = attncc.stats()
        if after.fallbacks > before.fallbacks:
            raise RuntimeError("no kernel: it ran as PyTorch")
        if entry.name in OF_OURS and after.calls == before.calls:
            raise RuntimeError("not recognised as attention")
    except Absent as reason:
        return replace(entry, failure=str(reason)), None
    except Exception as error:  # whatever a compiler raises, the other contenders go on
        return replace(entry, failure=f"failed: {_first_line(error)}"), None
    first = time.perf_counter() - start
    return replace(entry, first_call=first, error=_error(case, out, exact)), lambda: attention(*inputs)


def _error(case: Case, outputs: Any, exact: tuple[torch.Tensor, ...]) -> float:
    """The largest difference of any output in the rows that are checked; NaN where any row at all is not finite."""
    found = outputs if isinstance(outputs, tuple) else (outputs,)
    if not all(out.isfinite().all() for out in found):
        return math.nan
    rows = case.checked_rows
    errors = [(out[:, :, rows].double() - right).abs().max() for out, right in zip(found, exact, strict=True)]
    return float(max(errors))


def _bound(case: Case, inputs: Inputs, exact: tuple[torch.Tensor, ...]) -> float:
    """Twice the error of SDPA, else of eager, + 2 ulp of max|v|."""
    error = 0.0
    for name in (BASE, "eager"):
        found, _ = _check(CONTENDERS[name], Entry(name), case, inputs, exact)
        if not found.failure:
            error = found.error
            break
    v = inputs[2]
    ulp: float = torch.finfo(v.dtype).eps * 2.0 ** math.floor(math.log2(v.abs().max().item()))
    return 2 * error + 2 * ulp


def _plausible(entry: Entry, bound: float) -> Entry:
    """A peer whose result is no rounding of the right one has no speed either."""
    wrong = not entry.failure and not entry.error <= WRONG * bound
    return replace(entry, failure=f"wrong: off by {entry.error:.1e}") if wrong else entry


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}"[:160] if text else type(error).__name__


def duration(seconds: float) -> str:
    """Three digits, in ms or µs."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 1e-4 else f"{seconds * 1e3:.3g} ms"
