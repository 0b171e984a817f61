"""Rows of the suite that are more than one attention: memory, in a process of its own, and alternation with layers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attncc.bench.bars import Finding
from attncc.bench.cases import Case
from attncc.bench.contenders import fused
from attncc.bench.run import require_exact
from attncc.bench.timing import interleaved

MEGABYTES = 64.0
"""What a call may add to the process, its output included; the scores at S = 32768 would be 4295 MB a head."""
SLACK = 1.1
LAYERS = 8


def memory(quick: bool) -> tuple[Finding, ...]:
    """What one attention adds to the peak resident memory of a fresh process, its output included, in MB.

    Empty where the system does not tell (the figures are Linux's). Raises RuntimeError for a wrong result.
    """
    if not Path("/proc/self/clear_refs").exists():
        return ()
    length = 8192 if quick else 32768
    square = Case(1, 1, 1, length, length, 64, causal=True)
    cases = (square, Case(1, 1, 1, length, length, 64, "bfloat16"), Case(1, 8, 1, 1, 8 * length, 128, "bfloat16"))
    return tuple(_memory_of(case) for case in (cases[:1] if quick else cases))


def _memory_of(case: Case) -> Finding:
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(vars(case))], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{case.label}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return Finding(case.label, "MB added, output included", float(done.stdout), MEGABYTES, False)


def _added_megabytes(case: Case) -> float:
    """By the call of a kernel that ran before, over a few keys: building it takes more memory than running it."""
    inputs = q, k, v = case.inputs()
    attention = fused(case)
    attention(q, k[:, :, :256], v[:, :, :256])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _status("VmRSS")
    attention(*inputs)
    added = _status("VmHWM") - before
    require_exact(case, inputs)
    return added


def _status(field: str) -> float:
    """A line of the process's status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line for line in lines if line.startswith(field + ":")).split()[1]
    return float(kilobytes) * 1024 / 1e6


def alternating(quick: bool) -> tuple[Finding, ...]:
    """The time of linear layers and attention in turns, beside the sum of both on their own.

    Torch's threads and a kernel's could hinder each other. Raises RuntimeError for a wrong result.
    """
    found = []
    for dtype in ("float32",) if quick else ("float32", "bfloat16"):
        for length in (128,) if quick else (32, 128, 512, 2048):
            found.append(_alternating(Case(q_len=length, kv_len=length, dtype=dtype)))
    return tuple(found)


@torch.inference_mode()
def _alternating(case: Case) -> Finding:
    width = case.heads * case.head_dim
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, case.q_len, width, generator=generator).to(case.torch_dtype)
    weight = (torch.randn(3 * width, width, generator=generator) / math.sqrt(width)).to(case.torch_dtype)
    attention = fused(case)

    def split(projected: Tensor) -> list[Tensor]:
        return [t.unflatten(2, (case.heads, -1)).transpose(1, 2) for t in projected.chunk(3, dim=-1)]

    operands = split(F.linear(x, weight))

    def linear() -> Any:  # with its views, which are not attention's and cost a tenth of the smallest layer
        for _ in range(LAYERS):
            split(F.linear(x, weight))

    def attend() -> Any:
        for _ in range(LAYERS):
            attention(*operands)

    def both() -> Any:
        for _ in range(LAYERS):
            attention(*split(F.linear(x, weight)))

    require_exact(case, (operands[0], operands[1], operands[2]))
    times = interleaved({"linear": linear, "attention": attend, "both": both}, turns=7, seconds=0.05)
    value = times["both"].median / (times["linear"].median + times["attention"].median)
    return Finding(f"{LAYERS} x (linear {width} to {3 * width}, {case.label})", "of the sum", value, SLACK, False)


if __name__ == "__main__":
    print(_added_megabytes(Case(**json.loads(sys.argv[1]))))
