"""`attncc.tune` and `attncc tune` as users run them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import attncc
from attncc.cli import app
from attncc.tuning import sources
from attncc.tuning.database import Database
from attncc.tuning.measure import Candidate


@pytest.fixture
def nothing_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No records came with attncc, whatever an earlier test has read of them."""
    monkeypatch.setattr(sources, "SHIPPED", tmp_path / "none")
    sources.shipped.cache_clear()
    yield
    sources.shipped.cache_clear()


@pytest.mark.usefixtures("nothing_shipped")
def test_nothing_to_tune_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "linear.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(4, 4), (torch.ones(1, 4),)\n"
    )
    with pytest.raises(ValueError, match="nothing was measured: there is no attention here"):
        app(["tune", f"{tmp_path / 'linear.py'}:make", "--database", str(tmp_path / "db")], standalone_mode=False)
    with pytest.raises(ValueError, match="give one of"):
        app(["tune", "--suite", "common", "--workload", "x.json"], standalone_mode=False)
    with pytest.raises(ValueError, match="nothing was checked"):
        app(["tune", "--check", "--database", str(tmp_path / "db")], standalone_mode=False)


@pytest.mark.slow
def test_sixty_four_trials_of_a_large_space(tmp_path: Path) -> None:
    """MetaSchedule proposes, every candidate is right, and the runtime takes what won."""
    x = torch.randn(1, 8, 256, 32)

    def model(x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    tuned = attncc.tune(model, x, trials=64, database=tmp_path / "db")
    (state,) = tuned.searches
    assert tuned.measured == 64 and not state.failures and state.task.points > 64
    assert len({trial.candidate for trial in state.trials}) == 64


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost(tmp_path: Path) -> None:
    """SIGKILL at random moments: every whole line is a record, no candidate is measured twice, and the run goes on."""
    shape = {"heads": 2, "kv_heads": 2, "q_len": 130, "kv_len": 130, "head_dim": 16}
    (tmp_path / "shapes.json").write_text(json.dumps([shape]))
    words = ["--workload", str(tmp_path / "shapes.json"), "--trials", "24", "--database", str(tmp_path / "db")]
    command = [sys.executable, "-m", "attncc", "tune"]
    database, moments = Database(tmp_path / "db"), random.Random(0)
    seen = 0
    for _ in range(3):
        process = subprocess.Popen([*command, *words], stderr=subprocess.DEVNULL, start_new_session=True)
        began = time.monotonic()
        while len(database.records()) == seen and process.poll() is None and time.monotonic() - began < 120:
            time.sleep(0.2)
        time.sleep(moments.uniform(0.0, 2.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        contents = database.read()
        assert not contents.rejected and len(contents.records) >= seen
        seen = len(contents.records)
    assert subprocess.run([*command, *words], check=False, stderr=subprocess.DEVNULL).returncode == 0
    trials = [Candidate(record.decisions) for record in database.records() if record.default_seconds is None]
    assert len(trials) == len(set(trials)) == 24
