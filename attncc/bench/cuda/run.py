"""Check a case against float64, then time its contenders in turns; each by replaying a CUDA graph of its calls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

import attncc
from attncc._rich import table
from attncc.bench.cuda.cases import Attention, GpuCase, plain
from attncc.bench.cuda.contenders import BACKENDS, OURS, OURS_MMA, Call, contenders, exactly
from attncc.bench.cuda.timing import ROTATED_BYTES, Replays

_ULP = {"bfloat16": 2.0**-7, "float16": 2.0**-10, "float32": 2.0**-23}
_CHECK_BYTES = 2 << 30
"""Of float64 scores at once."""


@dataclass(frozen=True)
class Peaks:
    """What this GPU reaches: TFLOP/s of a bfloat16 product of 8192³, GB/s of a copy (read and written)."""

    device: str
    tflops: float
    gbs: float


@dataclass(frozen=True)
class Entry:
    """One contender on one case."""

    name: str
    error: float = math.nan
    """Largest absolute difference from float64."""
    seconds: float = math.nan
    failure: str = ""


@dataclass(frozen=True)
class Result:
    """All contenders on one case."""

    case: GpuCase
    flops: float
    bound: float
    """Error allowed to ours: twice that of SDPA (of the same sizes, where it has no such attention) + 2 ulp of v."""
    entries: tuple[Entry, ...]

    @property
    def passed(self) -> bool:
        """Whether ours ran and is as exact as it must be; nothing is timed where it is not."""
        ours = [e for e in self.entries if e.name in (OURS, OURS_MMA)]
        return all(not e.failure and e.error <= self.bound for e in ours)

    def share(self, seconds: float, peaks: Peaks) -> float:
        """Of the measured peak that limits the case."""
        if self.case.decode:
            return self.case.bytes / seconds / 1e9 / peaks.gbs
        return self.flops / seconds / 1e12 / peaks.tflops


def peaks() -> Peaks:
    """Measure the GPU."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    held = torch.zeros(2, 1 << 28, device="cuda")
    product = _timed({"product": [lambda: a @ b]}, 3)["product"]
    # The copy engine's way and a kernel's: which is faster differs between GPUs.
    copies = {"copy": [lambda: held[0].copy_(held[1])], "kernel": [lambda: torch.neg(held[1], out=held[0])]}
    copy = min(_timed(copies, 3).values())
    return Peaks(torch.cuda.get_device_name(), 2 * 8192**3 / product / 1e12, 2 * (1 << 30) / copy / 1e9)


@torch.inference_mode()
def run(case: GpuCase, turns: int = 5) -> Result:
    """Check every contender on `case`, then time them interleaved; one that raises is left out with its message."""
    inputs = case.inputs("cuda")
    attention = case.attention("cuda")
    exact, flops = reference(case, attention, *inputs)
    bound = 2 * _plain_error(case, inputs) + 2 * _ULP[case.dtype] * float(plain(inputs, torch.float32)[2].abs().max())
    entries, calls = {}, {}
    for name, call in contenders(case, attention).items():
        try:
            before = attncc.stats().fallbacks
            error = float((call(*inputs).double() - exact).abs().max())
            if name == OURS and attncc.stats().fallbacks > before:
                raise RuntimeError("no kernel: it ran as PyTorch")
            entries[name], calls[name] = Entry(name, error), call
        except Exception as error:  # whatever a compiler or a backend raises, the others go on
            lines = str(error).strip().splitlines() or [type(error).__name__]
            entries[name] = Entry(name, failure=lines[0][:120])
    del exact
    result = Result(case, flops, bound, tuple(entries.values()))
    if not result.passed:
        return result
    sets = _input_sets(case, inputs)
    times = _timed({name: [_bound_call(call, given) for given in sets] for name, call in calls.items()}, turns)
    return replace(result, entries=tuple(replace(e, seconds=times.get(e.name, math.nan)) for e in result.entries))


def _bound_call(call: Call, given: Sequence[Tensor]) -> Callable[[], Tensor]:
    return lambda: call(*given)


def _input_sets(case: GpuCase, inputs: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    """Inputs to be used in turn, so that a cache that fits the L2 is read from memory all the same."""
    count = -(-ROTATED_BYTES // case.bytes) if case.decode else 1
    return [inputs, *(case.inputs("cuda", seed) for seed in range(1, count))]


def reference(case: GpuCase, attention: Attention, q: Tensor, *cache: Tensor) -> tuple[Tensor, float]:
    """float64 out, and the operations of both products over the pairs that are seen; a few heads at a time."""
    group = case.heads // case.kv_heads
    out = torch.empty(case.batch, case.heads, case.q_len, case.head_dim, dtype=torch.float64, device=q.device)
    pairs = 0
    rows = max(1, min(case.q_len, _CHECK_BYTES // (8 * group * case.kv_len)))
    for b in range(case.batch):
        for head in range(case.kv_heads):
            heads = slice(head * group, (head + 1) * group)
            for first in range(0, case.q_len, rows):
                part = slice(first, first + rows)
                shifted, seen = _shifted(attention, head * group, first)
                small = replace(case, batch=1, heads=group, kv_heads=1)
                kept = [t[b : b + 1, head : head + 1] for t in cache]
                rows_of, keys, values = plain((q[b : b + 1, heads, part], *kept), torch.float64)
                out[b : b + 1, heads, part] = exactly(small, shifted, rows_of, keys, values, dtype=torch.float64)
                if b == head == 0:
                    pairs += seen(rows_of.shape[2], case.kv_len, q.device)
    return out, 4.0 * case.batch * case.heads * case.head_dim * pairs


def _shifted(attention: Attention, head: int, first: int) -> tuple[Attention, Callable[..., int]]:
    """The attention of rows from `first` on of heads from `head` on; and how many of its pairs are seen."""
    score, mask = attention.score_mod, attention.mask_mod

    def moved(function: Any, at: int) -> Any:
        return function and (lambda *given: function(*given[:at], given[at] + head, given[at + 1] + first, given[-1]))

    def seen(rows: int, keys: int, device: torch.device) -> int:
        if mask is None:
            return rows * keys
        i, j = torch.arange(rows, device=device)[:, None] + first, torch.arange(keys, device=device)
        return int(mask(0, 0, i, j).sum())

    return replace(attention, score_mod=moved(score, 2), mask_mod=moved(mask, 1)), seen


def _plain_error(case: GpuCase, inputs: tuple[Tensor, ...]) -> float:
    """The error of SDPA without score function and mask, on a part of the case."""
    q, k, v = plain([t[:1] for t in inputs], getattr(torch, case.dtype))
    q = q[:, :, : min(case.q_len, 512)]
    small = replace(case, batch=1, q_len=q.shape[2], kind="full", cache=None)
    exact, _ = reference(small, Attention(), q, k, v)
    grouped = case.heads != case.kv_heads
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
    return float((out.double() - exact).abs().max())


def _timed(calls: dict[str, list[Callable[[], Any]]], turns: int) -> dict[str, float]:
    """Median seconds of a call of each contender, of whose calls a graph is replayed in turns."""
    replays = {}
    for name, each in calls.items():
        try:
            replays[name] = Replays(each)
        except Exception:  # what cannot be captured cannot be timed like the others
            torch.cuda.synchronize()
    found: dict[str, list[float]] = {name: [] for name in replays}
    for _ in range(turns):
        for name, each_of in replays.items():
            found[name].append(each_of.turn())
    return {name: statistics.median(times) for name, times in found.items()}


def report(result: Result, measured: Peaks) -> RenderableType:
    """One table a case."""
    unit = "GB/s" if result.case.decode else "TFLOP/s"
    rows: Table = table(result.case.label, "", "error", "time", unit, "of measured", "attncc is")
    for column in rows.columns[1:]:
        column.justify = "right"
    times = {e.name: e.seconds for e in result.entries}
    for entry in result.entries:
        style = "bold" if entry.name in (OURS, OURS_MMA) else ""
        if entry.failure or math.isnan(entry.seconds):
            rows.add_row(entry.name, entry.failure or f"{entry.error:.1e}", style=style)
            continue
        work = result.case.bytes / 1e9 if result.case.decode else result.flops / 1e12
        cells = [f"{entry.error:.1e}", f"{entry.seconds * 1e6:.1f} µs", f"{work / entry.seconds:.0f}"]
        cells += [f"{result.share(entry.seconds, measured):.0%}", f"{entry.seconds / times[OURS]:.2f}x"]
        rows.add_row(entry.name, *cells, style=style)
    if not result.passed:
        rows.add_row(f"outside the bound {result.bound:.1e}, or failed: nothing is timed", style="bold red")
    return rows


def to_json(result: Result, measured: Peaks) -> dict[str, Any]:
    """Plain data."""
    entries = []
    for entry in result.entries:
        timed = not math.isnan(entry.seconds)
        share = result.share(entry.seconds, measured) if timed else None
        error = None if math.isnan(entry.error) else entry.error
        entries.append({**asdict(entry), "error": error, "seconds": entry.seconds if timed else None, "share": share})
    facts = {"flops": result.flops, "bytes": result.case.bytes, "bound": result.bound, "passed": result.passed}
    return {"case": asdict(result.case), **facts, "entries": entries, "names": [*BACKENDS]}
