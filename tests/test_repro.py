"""`site.write_repro`: a script that runs, finds the same site, and is as exact as PyTorch."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import attncc
from attncc.report import Site


class Model(nn.Module):
    """Projections, a causal mask made in the graph, a branch; `wrong` takes the softmax over the queries."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.out, self.dim = nn.Linear(32, 96), nn.Linear(32, 32), dim

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, 2, 16).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT * 0.25).masked_fill_(torch.ones(s, s, dtype=torch.bool).triu(1), -1e9)
        return self.out((scores.softmax(self.dim) @ v).transpose(1, 2).reshape(b, s, 32))


def branch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return torch.cond(q.sum() > 1000, lambda q, k, v: q + k + v, attend, (q, k, v))


def run(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, float, float]:
    """The output of the script, and the two errors it prints."""
    path = site.write_repro(tmp_path / "site.py")
    capsys.readouterr()
    torch._dynamo.reset()
    runpy.run_path(str(path))
    text = capsys.readouterr().out
    eager, compiled = (float(n) for n in re.findall(r"from float64 (\S+)", text))
    return text, eager, compiled


@pytest.mark.parametrize("dim", [-1, -2])
def test_a_site_of_a_model(dim: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site,) = attncc.explain(Model(dim).eval(), torch.randn(2, 7, 32)).sites
    assert site.fused == (dim == -1)
    text, eager, compiled = run(site, tmp_path, capsys)
    assert f"1 found, {int(site.fused)} fused" in text
    assert compiled <= 2 * eager + 1e-6
    script = (tmp_path / "site.py").read_text()
    assert "aten.linear" not in script and site.source in script and (site.reason in script or site.fused)


def test_dynamic_sizes_and_a_site_inside_of_a_branch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = [torch.randn(2, 3, n, 16) for n in (6, 9, 9)]
    for x in args:
        torch._dynamo.mark_dynamic(x, 2)
    calls: tuple[Callable[..., Any], ...] = (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, branch)
    for call, given in zip(calls, (args, [torch.randn(2, 3, 6, 16)] * 3), strict=True):
        (site,) = attncc.explain(call, *given).sites
        text, eager, compiled = run(site, tmp_path, capsys)
        assert "1 found, 1 fused" in text and compiled <= 2 * eager + 1e-6


def test_a_site_without_its_graph_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="explain"):
        Site(True, "model.py:1", "p @ v").write_repro(tmp_path / "site.py")
