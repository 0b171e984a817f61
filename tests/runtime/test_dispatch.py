"""From calls to kernels: strides, offsets, alignment, sizes, regimes, and what happens when no kernel can be built."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sampling import one_in
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from attncc import expr as ex
from attncc import reference, schedules
from attncc.attention import attention
from attncc.runtime import build, dispatch, launcher, stats
from attncc.spec import AttentionSpec, Extra
from attncc.target import Target, parse

SPEC = AttentionSpec("float32", 16, 8, score_mod=ex.op("mul", ex.Score(), ex.Scalar("s0", "float32")), scalars=("s0",))


def operands(batch: int = 2, heads: int = 3, q_len: int = 5, kv_len: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, heads, q_len, 16),
        torch.randn(batch, heads, kv_len, 16),
        torch.randn(batch, heads, kv_len, 8),
    )


def check(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec = SPEC, layout: str = "bhsd") -> Tensor:
    """A dispatched call against the oracle, counted as a kernel call."""
    before = stats.stats()
    out = dispatch.attention(q, k, v, [], [0.3], [], spec.json, layout)
    exact = reference.attention(spec, q, k, v, [], [0.3])
    tolerance = 2e-2 if q.dtype in (torch.bfloat16, torch.float16) else 1e-5
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)
    assert stats.stats().calls == before.calls + 1 and stats.stats().fallbacks == before.fallbacks
    return out


def test_many_lengths_and_batches_build_one_kernel_a_regime(fresh: Path) -> None:
    sizes = itertools.product((2, 3, 7, 16), (1, 2, 5, 33, 64, 130), (2, 9, 100))
    for batch, q_len, kv_len in itertools.islice(sizes, 0, 72):
        check(*operands(batch, 3, q_len, kv_len))
    seen = stats.stats()
    assert seen.calls == 72 and all(k.compiles == 1 for k in seen.kernels)
    families = {
        schedules.select(SPEC, schedules.Problem(2, 3, n, 100, 2), dispatch.host_target()).name for n in (1, 130)
    }
    assert seen.compiles == len(seen.kernels) <= 3 and families <= {k.name.split()[0] for k in seen.kernels}


def test_a_changed_thread_count_builds_nothing(fresh: Path) -> None:
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            check(*operands(q_len=70))
    finally:
        torch.set_num_threads(threads)
    assert stats.stats().compiles == 1


@pytest.mark.parametrize("dtype", one_in(3, ["float32", "bfloat16", "float64", "float16"]))
@pytest.mark.parametrize("q_len", [1, 37])
def test_views_of_any_offset_and_stride_are_read_in_place(dtype: str, q_len: int) -> None:
    spec = AttentionSpec(dtype, 16, 8, score_mod=SPEC.score_mod, scalars=("s0",))

    def odd(batch: int, heads: int, rows: int, inner: int) -> Tensor:
        """Starts one element in; rows are odd distances apart; heads lie inside rows."""
        base = torch.randn(batch * rows * heads * (inner + 3) + 1).to(getattr(torch, dtype))
        strides = (rows * heads * (inner + 3), inner + 3, heads * (inner + 3), 1)
        return base.as_strided((batch, heads, rows, inner), strides, 1)

    copies = stats.stats().copies
    q, k, v = odd(2, 3, q_len, 16), odd(2, 3, 41, 16), odd(2, 3, 41, 8)
    check(q, k, v, spec)
    check(q, k[:1].expand(2, 3, 41, 16), v[:, :1].expand(2, 3, 41, 8), spec)
    check(q.flip(0), k[:, :, 3:], v[:, :, 3:], spec)
    check(q, k[:, :, ::3], v[:, :, ::3], spec)
    packed = torch.randn(2, 41, 3, 40).to(getattr(torch, dtype)).transpose(1, 2)
    check(packed[:, :, :q_len, :16], packed[..., 16:32], packed[..., 32:], spec)
    assert stats.stats().copies == copies


def test_a_last_dimension_that_is_not_dense_is_copied_once_and_counted() -> None:
    q, k, v = operands()
    wide = torch.randn(2, 3, 7, 32)
    before = stats.stats().copies
    check(q, wide[..., ::2], v)
    assert stats.stats().copies == before + 1
    check(q, k.transpose(-1, -2).contiguous().transpose(-1, -2), v)
    assert stats.stats().copies == before + 2
    check(q, wide[:1, :1, :, ::2].expand(2, 3, 7, 16), v)
    assert stats.stats().copies == before + 3
    one = AttentionSpec("float32", 1, 1, score_mod=SPEC.score_mod, scalars=("s0",))
    check(*(torch.randn(2, 3, 5, 4)[..., :1] for _ in range(3)), spec=one)
    assert stats.stats().copies == before + 3  # one element a row is dense whatever its stride says


@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_layout_of_the_output(layout: str) -> None:
    out = check(*operands(), layout=layout)
    assert (out if layout == "bhsd" else out.transpose(1, 2)).is_contiguous()
    empty = dispatch.attention(*operands(kv_len=0), [], [0.3], [], SPEC.json, layout)
    assert empty.stride() == out.stride() and (empty == 0).all()


@pytest.mark.parametrize("q_len", [1, 40])
def test_offsets_beyond_two_to_the_31_elements(tmp_path: Path, q_len: int) -> None:
    """Rows 2^26 elements apart in a sparse file of 12 GB, of which only the pages that hold rows come to exist."""
    far = 1 << 26
    base = torch.from_file(str(tmp_path / "sparse"), shared=True, size=3 << 30, dtype=torch.float32)
    rows, at = 40, iter(range(0, 1 << 20, 1 << 12))

    def spread(heads: int, count: int, inner: int) -> Tensor:
        view = base.as_strided((1, heads, count, inner), (3 << 30, 1024, far, 1), next(at))
        return view.copy_(torch.randn(view.shape))

    q, k, v = spread(2, q_len, 16), spread(2, rows, 16), spread(2, rows, 8)
    bias = base.as_strided((q_len, rows), (1, far), next(at)).copy_(torch.randn(q_len, rows))
    assert k.storage_offset() + 39 * far > 2**31
    check(q, k, v)
    torch.testing.assert_close(attention(q, k, v, bias), sdpa(q, k, v, bias), rtol=1e-5, atol=1e-5)


def test_other_targets_of_this_host(fresh: Path) -> None:
    """A kernel for an older CPU of the family runs here as well, and is another kernel."""
    if dispatch.host_target().arch != "x86_64":
        pytest.skip("x86-64 targets")
    for name in ("x86-64-v3", "x86-64"):
        dispatch.set_target(parse(name))
        for q_len in (1, 33):
            check(*operands(q_len=q_len))
    dispatch.set_target(None)
    check(*operands(q_len=33))
    assert stats.stats().compiles == 5


def test_without_a_kernel_pytorch_answers_with_one_warning(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(build, "compile_llvm", broken)
    spec = AttentionSpec(
        "float32", 16, 8, score_mod=ex.op("mul", SPEC.score_mod, ex.Const(0.5, "float32")), scalars=("s0",)
    )
    q, k, v = operands()
    with pytest.warns(RuntimeWarning, match="no such instruction") as caught:
        for kv_len in (7, 6):
            out = dispatch.attention(q, k[:, :, :kv_len], v[:, :, :kv_len], [], [0.3], [], spec.json, "bshd")
            torch.testing.assert_close(out, sdpa(q, k[:, :, :kv_len], v[:, :, :kv_len], scale=0.15))
            assert out.transpose(1, 2).is_contiguous()
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    assert (stats.stats().calls, stats.stats().fallbacks) == (0, 2)


def test_a_family_that_cannot_be_built_leaves_the_call_to_the_next(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_llvm = build.compile_llvm

    def broken(spec: AttentionSpec, target: Target, family: schedules.Family, decisions: dict[str, int]) -> bytes:
        if family.regime != "any":
            raise RuntimeError("no such instruction")
        return compile_llvm(spec, target, family, decisions)

    monkeypatch.setattr(build, "compile_llvm", broken)
    with pytest.warns(RuntimeWarning, match="fallback runs it instead") as caught:
        for kv_len in (7, 6):
            check(*operands(kv_len=kv_len))
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"q": torch.randn(2, 3, 5, 15)}, r"q has shape \[2, 3, 5, 15\]"),
        ({"k": torch.randn(2, 2, 7, 16)}, r"k has shape \[2, 2, 7, 16\]"),
        ({"v": torch.randn(2, 3, 6, 8)}, r"v has shape \[2, 3, 6, 8\]"),
        ({"q": torch.randn(3, 5, 16)}, "rank 4"),
        ({"v": torch.randn(2, 3, 7, 8).double()}, "float64"),
        ({"scalars": []}, "0 scalars"),
        ({"extras": []}, "0 extras"),
        ({"extras": [torch.zeros(6)]}, "reads up to element 6"),
        ({"extras": [torch.zeros(0)]}, "no element"),
        ({"extras": [torch.zeros(7).double()]}, "float64"),
        ({"layout": "sbhd"}, "sbhd"),
        ({"spec": "{}"}, "version"),
    ],
)
def test_operands_that_the_spec_does_not_describe(change: dict[str, object], says: str) -> None:
    score = ex.op("add", SPEC.score_mod, ex.Load("t0", (ex.Index("j"),), "float32"))
    spec = AttentionSpec("float32", 16, 8, score_mod=score, scalars=("s0",), extras=(Extra("t0", "float32", 1),))
    q, k, v = operands()
    given = {"q": q, "k": k, "v": v, "extras": [torch.zeros(7)], "scalars": [0.3], "integers": []}
    given |= {"spec": spec.json, "layout": "bhsd"}
    torch.ops.attncc.attention(**given)
    with pytest.raises((ValueError, TypeError), match=says):
        torch.ops.attncc.attention(**{**given, **change})


def test_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch._plans, "entries", 8)
    for kv_len in range(2, 40):
        check(*operands(kv_len=kv_len))
    assert len(dispatch._plans) <= 8
    monkeypatch.setattr(dispatch._plans, "limit", 100)
    check(*operands(kv_len=50))
    assert len(dispatch._plans) == 1


def test_kernels_in_memory_are_bounded(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_CAPACITY", 2)
    specs = [AttentionSpec("float32", n, 8, score_mod=SPEC.score_mod, scalars=("s0",)) for n in (3, 4, 5)]
    for spec in (*specs, *specs):
        check(*(t[..., : spec.head_dim] for t in operands()[:2]), operands()[2], spec=spec)
    assert len(build._kernels) == 2 and len({id(p.kernel) for p in dispatch._plans.values()}) == 2  # type: ignore[attr-defined]
    assert (stats.stats().compiles, stats.stats().disk_hits) == (3, 3)


def test_parallel_loops_run_on_torchs_pool() -> None:
    assert "OpenMP" in launcher.describe()


WITHOUT_OPENMP = """
import torch
from attncc import attention, stats
from attncc.runtime import launcher
launcher._SYMBOLS = ("no_such_symbol",)
torch.set_num_threads(2)
for length in (2, 200, 3, 300):  # one thread, several, and again: a kernel remembers its last launcher
    q, k, v = (torch.randn(2, 4, length, 16) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attention(q, k, v), expected)
assert "TVM" in launcher.describe() and stats().fallbacks == 0
"""


@pytest.mark.slow
def test_an_openmp_runtime_without_gnu_entry_points_leaves_kernels_on_tvms_pool(fresh: Path) -> None:
    subprocess.run([sys.executable, "-W", "error::RuntimeWarning", "-c", WITHOUT_OPENMP], check=True, timeout=600)


def test_switched_off_everything_runs_as_pytorch(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTNCC_DISABLE", "1")
    dispatch.forget_plans()
    q, k, v = operands()
    torch.testing.assert_close(attention(q, k, v), sdpa(q, k, v))
    assert (stats.stats().calls, stats.stats().fallbacks, stats.stats().compiles) == (0, 1, 0)
