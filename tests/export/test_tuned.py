"""Artifacts hold what tuning chose, for the sizes for which it did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tuning_records import FAMILY, SPEC, decisions, default, record

import attncc
from attncc.runtime import ahead
from attncc.schedules import Problem
from attncc.tuning import sources
from attncc.tuning.database import Database


@pytest.mark.slow
def test_an_artifact_chooses_as_this_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuned kernel next to its bucket, as far as the evidence carries; far away the default."""
    monkeypatch.setenv("ATTNCC_DATABASE", str(tmp_path / "tuned.jsonl"))
    monkeypatch.setattr(sources, "_named", [])
    sources._sources.cache_clear()
    better = decisions(edge_block=16)
    Database(tmp_path / "tuned.jsonl").append(record(0.3, better))

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.ops.attncc.attention(q, k, v, [], [0.1], [], SPEC.json, "bhsd")

    def inputs(length: int) -> list[torch.Tensor]:
        return [torch.randn(1, 3, length, size) for size in (SPEC.head_dim, SPEC.head_dim, SPEC.value_dim)]

    shapes = [{2: torch.export.Dim("length")}] * 3
    exported = attncc.export(attend, inputs(40), tmp_path / "model.pt2", dynamic_shapes=shapes)
    sources._sources.cache_clear()
    assert exported.sites == (), "the operator is called already"
    tuned = [kernel for kernel in exported.libraries[0].kernels if kernel.places is not None]
    assert [kernel.decisions for kernel in tuned] == [better] and "30% faster" in tuned[0].source
    loaded = attncc.load(exported.path)
    far = Problem(1, 3, 4096, 4096, 1)
    for problem, expected in ((Problem(1, 3, 300, 280, 1), better), (far, default())):
        kernel = ahead.find(SPEC, problem)
        assert kernel is not None and (kernel.family, kernel.decisions) == (FAMILY, expected)
    given = inputs(301)
    torch.testing.assert_close(loaded(*given), (given[0] @ given[1].mT * 0.1).softmax(-1) @ given[2])
