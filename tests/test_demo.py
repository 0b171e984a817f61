"""The main job: what is shipped with it, and (slow) the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from attncc import demo
from attncc.report import Report, Site


def test_the_shipped_texts() -> None:
    """Six topics of four paragraphs, long enough for padding and masks to matter."""
    texts = demo.paragraphs()
    assert len(texts) == 24
    assert len(demo.articles(texts)) == 6
    assert all(60 <= len(text.split()) <= 120 for _, text in texts)
    assert len({text for _, text in texts}) == 24


def _made_up() -> demo.Demo:
    engines = {name: demo.Timed(1.0, 1e-7) for name in demo.ENGINES}
    hit = demo.Hit("query", "text.", {name: (3, 0.5) for name in demo.ENGINES})
    site = Site(True, "model.py:1", "softmax", kernel="cpu.any")
    return demo.Demo(Report((site,), 1, 0.1), 0.2, 2, (demo.Batch("texts", 3, 9, engines, 1),), (hit,))


def test_a_good_run_has_no_problems() -> None:
    """And prints as text and JSON."""
    result = _made_up()
    assert result.problems == []
    assert json.loads(result.to_json())["same_results"] is True


def test_every_kind_of_failure_is_a_problem() -> None:
    """A site left unfused, a text that one engine alone finds, an error beyond the bound."""
    good = _made_up()
    batch = good.batches[0]
    engines = {**batch.engines, "attncc": demo.Timed(1.0, float("nan"))}
    hit = demo.Hit("query", "text.", {**good.hits[0].found, "attncc": (4, 0.5)})
    unfused = Report((Site(False, "model.py:1", "softmax", reason="dropout"),))
    for bad in (
        replace(good, report=Report(())),
        replace(good, report=unfused),
        replace(good, batches=(replace(batch, engines=engines),)),
        replace(good, hits=(hit,)),
        replace(good, fallbacks=3),
    ):
        assert len(bad.problems) == 1


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """On the real model: six attentions, all fused, the same texts found, no more than a kernel a batch, no network."""
    code = "from attncc.cli import main; main()"
    command = [sys.executable, "-c", code, "demo", "--json", "--turns", "1", "--seconds", "0.01"]
    environment = {**os.environ, "ATTNCC_CACHE_DIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parent.parent
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    data = json.loads(result.stdout)
    assert data["problems"] == []
    assert (data["report"]["found"], data["report"]["fused"]) == (6, 6)
    short, long = (batch["kernels"] for batch in data["batches"])
    assert short == 1 and long <= 1  # few keys have a kernel of their own
