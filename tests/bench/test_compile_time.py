"""`attncc bench --compile-time`: what it compiles is attention of the usual kind; what it prints are its figures."""

from __future__ import annotations

import json

import torch

from attncc import explain
from attncc.bench.compile_time import LENGTH, WIDTH, CompileTimes, Encoder


def test_every_layer_has_an_attention_that_is_fused() -> None:
    keep = torch.arange(LENGTH).expand(2, LENGTH) < LENGTH - 9
    with torch.no_grad():
        report = explain(Encoder(2).eval(), torch.randn(2, LENGTH, WIDTH), keep)
    assert (len(report.sites), report.fused) == (2, 2)


def test_the_table_and_the_json_say_the_same() -> None:
    times = CompileTimes(((1, 0.25, 5.0), (12, 1.5, 20.0)))
    assert json.loads(times.to_json())[1] == {"layers": 12, "attncc": 1.5, "inductor": 20.0}
    assert "1.50 s" in str(times) and "125 ms" in str(times) and "5%" in str(times)
