"""What capture costs when a model is compiled: tracing and passes at several depths, beside Inductor's compilation."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor, nn

from attncc._rich import table, to_text
from attncc.explain import explain

DEPTHS = (1, 3, 6, 12)
TURNS = 3
STEPS = 1 + len(DEPTHS) * (TURNS + 1)
"""Calls of `progress` that `measure` makes."""
HEADS, WIDTH, LENGTH = 4, 256, 128


class Layer(nn.Module):
    """One encoder layer as models write it out: projections, masked softmax, weighted sum, feed-forward, norms."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """x [B, S, WIDTH] and keep [B, S], True for tokens that count, give [B, S, WIDTH]."""
        batch, length, _ = x.shape
        q, k, v = self.inputs(x).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind()
        scores = q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5
        scores = scores.masked_fill(~keep[:, None, None, :], float("-inf"))
        seen = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, length, WIDTH)
        x = self.first(x + self.output(seen))
        result: Tensor = self.second(x + self.narrow(nn.functional.gelu(self.wide(x))))
        return result


class Encoder(nn.Module):
    """`depth` layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(depth))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        """As `Layer.forward`."""
        for layer in self.layers:
            x = layer(x, keep)
        return x


@dataclass(frozen=True)
class CompileTimes:
    """Seconds of compilation by number of layers: attncc's tracing and passes, replays of sites that are not alike in
    this process; all that Inductor does.
    """

    rows: tuple[tuple[int, float, float], ...]
    """Layers, seconds of attncc, seconds of Inductor."""

    def to_json(self) -> str:
        """The rows as a JSON list, times in seconds."""
        return json.dumps(
            [dict(zip(("layers", "attncc", "inductor"), row, strict=True)) for row in self.rows], indent=2
        )

    def __str__(self) -> str:
        return to_text(self)

    def __rich__(self) -> RenderableType:
        shown: Table = table("Compilation", "layers", "attncc", "a layer", "Inductor", "share")
        for depth, ours, theirs in self.rows:
            cells = f"{ours:.2f} s", f"{ours / depth * 1e3:.0f} ms", f"{theirs:.1f} s", f"{ours / theirs:.0%}"
            shown.add_row(str(depth), *cells)
        return shown


def measure(depths: Sequence[int] = DEPTHS, progress: Callable[[str], None] = lambda what: None) -> CompileTimes:
    """Compile encoders of these depths; attncc's time is the least of `TURNS`, Inductor compiles once, without caches.

    Dynamo's own time, which both have, is in neither. Raises what Inductor raises where it finds no C++ compiler.
    """
    rows = []
    inputs = torch.randn(2, LENGTH, WIDTH), torch.arange(LENGTH).expand(2, LENGTH) < LENGTH - 9
    progress("Inductor's first compilation, which warms it up")
    with torch.no_grad():
        _inductor_seconds(Encoder(1).eval(), inputs)
    for depth in depths:
        model = Encoder(depth).eval()
        ours = []
        with torch.no_grad():
            for _ in range(TURNS):
                progress(f"{depth} layers: attncc")
                torch.compiler.reset()
                ours.append(explain(model, *inputs).compile_seconds)
            progress(f"{depth} layers: Inductor")
            rows.append((depth, min(ours), _inductor_seconds(model, inputs)))
    torch.compiler.reset()
    return CompileTimes(tuple(rows))


def _inductor_seconds(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx

    seconds = []

    def timed(gm: torch.fx.GraphModule, example_inputs: list[Tensor]) -> Any:
        start = time.perf_counter()
        compiled = compile_fx(gm, example_inputs)
        seconds.append(time.perf_counter() - start)
        return compiled

    torch.compiler.reset()
    with config.patch(force_disable_caches=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
        torch.compile(model, backend=timed)(*inputs)
    return sum(seconds)
