"""Records of CUDA kernels: used where they fit, told where they come from, harmless where they are forged."""

from __future__ import annotations

import importlib
from pathlib import Path

import cuda_emulation
import pytest
import zoo
from kernel_harness import assert_near, make_case

from attncc import expr as ex
from attncc import reference
from attncc.rewrite import Found
from attncc.runtime import stats
from attncc.runtime.cuda import dispatch
from attncc.schedules.cuda.families import PrefillMma
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning import sources
from attncc.tuning.database import Database
from attncc.tuning.record import Record
from attncc.tuning.versions import Versions

emulated = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")
SPEC = AttentionSpec("float16", 16, 16, score_mod=zoo.SCALED)
TUNED = {"rows": 32, "keys": 32, "warps": 2, "keep_q": 1, "blocks": 2}
NO_ROOM = {"rows": 256, "keys": 128, "warps": 2, "keep_q": 1, "blocks": 3}
"""Each decision is in the space; together they would take some thousand registers."""


def claim(target: Target, decisions: dict[str, int], spec: AttentionSpec = SPEC) -> Record:
    """That such decisions take half the time of the default, for calls like `ran`'s."""
    family = PrefillMma()
    return Record(
        spec=spec.json, family=family.name, decisions=decisions, problem=Problem(1, 2, 70, 90, target.cores),
        target=target, seconds=1e-3, spread=0.01, default_seconds=2e-3, default_family=family.name,
        default_decisions=family.decisions(spec, target), versions=Versions.current(target),
    )  # fmt: skip


def ran(folder: Path, decisions: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the decisions came from of a call that was right, with such a claim on record."""
    dispatch.forget_plans()
    stats.stats(reset=True)
    monkeypatch.setenv("ATTNCC_DATABASE", str(folder / "db"))
    monkeypatch.setattr(sources, "shipped", lambda: ())
    case = make_case(SPEC, 1, 2, 70, 90)
    with cuda_emulation.gpu(folder) as target:
        Database(folder / "db").append(claim(target, decisions))
        (out,) = dispatch.outputs(case.q, case.k, case.v, (), (), (), SPEC.json, "bhsd")
        dispatch.forget_plans()
    assert_near(SPEC, out, reference.attention(SPEC, case.q, case.k, case.v), case.v)
    (kernel,) = [kernel for kernel in stats.stats(reset=True).kernels if kernel.calls]
    return kernel.decisions


@emulated
def test_a_record_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "for h2 q128 k128 t4, 100% faster than the default" in ran(tmp_path, TUNED, monkeypatch)


@emulated
def test_a_forged_one_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ran(tmp_path, NO_ROOM, monkeypatch) == stats.DEFAULT


def test_explain_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the spec that the runtime looks up, which has the usual scale as a number."""
    target = Target("cuda", "sm_80", "nvptx64-nvidia-cuda", frozenset(), 4, 0, 0, 0)
    scale = ex.op("mul", ex.Score(), ex.Scalar("s0", "float32"))
    spec = AttentionSpec("float16", 16, 16, score_mod=scale, scalars=("s0",))
    Database(tmp_path / "db").append(claim(target, TUNED, dispatch.special(spec, (0.25,))))
    monkeypatch.setenv("ATTNCC_DATABASE", str(tmp_path / "db"))
    monkeypatch.setattr(sources, "shipped", lambda: ())
    explain = importlib.import_module("attncc.explain")  # not the function of that name
    monkeypatch.setattr(explain, "_target", lambda device: target)
    found = Found(True, "", "", spec=spec, size_hints={"B": 1, "H": 2, "Sq": 70, "Skv": 90}, device="cuda")
    name, regime, source = explain._kernel(found)
    assert (name, regime) == ("cuda.prefill.mma", "prefill") and "100% faster than the default (sm_80)" in source
