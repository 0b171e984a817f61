"""`attncc compile`: from a factory to a file that `attncc.load` runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import attncc
from attncc.cli import main

FACTORY = """
import torch

def attend(q, k, v):
    return (q @ k.transpose(-2, -1) * 0.25).softmax(-1) @ v

def factory():
    return attend, torch.randn(3, 2, 2, 20, 16).unbind()

def keywords():
    return attend, (), dict(zip("qkv", torch.randn(3, 2, 2, 20, 16).unbind()))

def refused():
    return (lambda q, k, v: (q @ k.mT).softmax(-2) @ v), torch.randn(3, 2, 2, 20, 16).unbind()
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `attncc compile` beside a file of factories: (exit status, stdout, stderr)."""
    (tmp_path / "factories.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["attncc", "compile", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code or 0, captured.out, captured.err

    return call


@pytest.mark.slow
def test_a_factory_becomes_a_file(run) -> None:
    """Fixed sizes by default; --dynamic leaves those open that the model does not fix; keyword inputs stay so."""
    status, out, _ = run("factories.py:factory", "--output", "fixed.pt2")
    assert status == 0 and "1 found, 1 fused" in out and "fixed.pt2" in out
    status, out, _ = run("factories.py:keywords", "-o", "open.pt2", "--dynamic", "--json")
    assert status == 0
    told = json.loads(out)
    assert told["sites"][0]["fused"] and len(told["libraries"][0]["kernels"]) > 2
    loaded = attncc.load("open.pt2")
    q, k, v = torch.randn(3, 3, 2, 31, 16).unbind()
    torch.testing.assert_close(loaded(q=q, k=k, v=v), (q @ k.mT * 0.25).softmax(-1) @ v)
    with pytest.raises(AssertionError, match=r"q\.size\(\)\[0\] == 2"):
        attncc.load("fixed.pt2")(q, k, v)


def test_errors_are_one_line(run) -> None:
    """What was not fused under --strict, a CPU that LLVM does not know, no output."""
    status, _, err = run("factories.py:refused", "-o", "model.pt2", "--strict")
    assert status == 1 and "another axis" in err.splitlines()[-1]
    status, _, err = run("factories.py:factory", "-o", "model.pt2", "--target", "znver44")
    assert status == 1 and "znver4" in err.splitlines()[-1]
    status, _, err = run("factories.py:factory")
    assert status == 2 and "--output" in err
    assert not Path("model.pt2").exists()


def test_help(run) -> None:
    """With examples."""
    status, out, _ = run("--help")
    assert status == 0 and "Examples" in out and "--dynamic" in out
