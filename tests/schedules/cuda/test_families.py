"""What the CUDA families take, how they split calls, and what instructions their kernels are made of."""

from __future__ import annotations

import pytest
import zoo

from attncc import expr as ex
from attncc.schedules.cuda.families import (
    CUDA,
    CudaFamily,
    Decode,
    PrefillMma,
    PrefillWgmma,
    Simt,
    SimtFew,
)
from attncc.schedules.cuda.gpu import shared_limit
from attncc.schedules.cuda.visited import visited
from attncc.schedules.family import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target, detect

HOPPER, AMPERE, TURING = (
    Target("cuda", name, "nvptx64-nvidia-cuda", frozenset(), 132, 0, 0, 0) for name in ("sm_90a", "sm_80", "sm_75")
)
CAUSAL = ex.op("le", ex.Index("j"), ex.Index("i"))


def spec(dim: int = 64, dtype: str = "bfloat16", **more: object) -> AttentionSpec:
    return AttentionSpec(dtype, dim, dim, **{"score_mod": zoo.SCALED, **more})  # type: ignore[arg-type]


def reason(family: CudaFamily, given: AttentionSpec, target: Target = HOPPER) -> str:
    declined = family.declines(given, target)
    return "" if declined is None else declined.reason


def test_what_each_gpu_runs() -> None:
    takes = {t.mcpu: [f.name for f in CUDA if not reason(f, spec(), t)] for t in (HOPPER, AMPERE, TURING)}
    decode, *others = ["cuda.decode", "cuda.prefill.mma", "cuda.simt.few", "cuda.simt"]
    hopper = [decode, "cuda.prefill.wgmma", *others]
    assert takes == {"sm_90a": hopper, "sm_80": [decode, *others], "sm_75": others[1:]}
    assert "wgmma is an instruction of sm_90a" in reason(PrefillWgmma(), spec(), AMPERE)
    assert reason(PrefillMma(), spec(), detect()) == "the target is a cpu"


def test_reasons_name_what_is_missing() -> None:
    assert "not float32" in reason(PrefillMma(), spec(dtype="float32"))
    assert "head_dim 20" in reason(PrefillWgmma(), AttentionSpec("bfloat16", 20, 64))
    assert "no dot product" in reason(PrefillMma(), spec(**zoo.ATTENTIONS["additive"].fields))
    assert "not max" in reason(PrefillMma(), spec(outputs=("out", "max")))
    assert "maxima and sums" in reason(Decode(), spec(normalizer="none", fill=0.0, mask=CAUSAL))


def test_what_of_the_zoo_is_refused() -> None:
    caches = [name for name in zoo.ATTENTIONS if "cache, scales" in name]
    products = ["bilinear", "bilinear by head", "additive", "additive by column", "negative distance"]
    outputs = ["plus one", "relu, causal", "statistics", "weights, NaN rows", "weights, finite fill"]
    for family in CUDA:
        expected = {*products, *caches, *outputs, *(["sigmoid"] if isinstance(family, Decode) else [])}
        if isinstance(family, Decode):
            expected -= {"int8 cache, scales by token"}
        if isinstance(family, Simt):
            expected = set()
        assert {n for n, a in zoo.ATTENTIONS.items() if reason(family, spec(group=2, **a.fields))} == expected


def test_splits_fill_the_gpu_and_no_more() -> None:
    family, given = Decode(), spec(128, group=8)
    decisions = family.decisions(given, HOPPER)
    for kv_len, splits in ((100, 1), (65536, 33), (4096, 16)):
        launch = family.launch(given, decisions, Problem(1, 32, 1, kv_len, 132))
        assert launch.workspaces[0] == (1, 4, splits, 16, 128)
    assert not family.suits(given, Problem(1, 32, 3, 4096, 132))


def test_tiles_fit_every_gpu() -> None:
    """Shared memory differs; what no tile fits is declined with the reason."""
    for name in ("sm_75", "sm_80", "sm_86", "sm_90a", "sm_120"):
        target = Target("cuda", name, "nvptx64-nvidia-cuda", frozenset(), 100, 0, 0, 0)
        for dim in (64, 128, 192, 256):
            given = spec(dim)
            if not reason(Decode(), given, target):
                assert Decode().room(given, Decode().decisions(given, target)).shared <= shared_limit(target)
            for dtype in ("float32", "float64"):
                assert not reason(Simt(), spec(dim, dtype), target)
    assert "more than the 101376 bytes" in reason(Decode(), spec(256), Target(**{**vars(HOPPER), "mcpu": "sm_86"}))
    assert "rows of 9000 and 9000 columns take" in reason(Simt(), spec(9000, "float32"))


def test_few_rows_make_small_tiles() -> None:
    given = spec(dtype="float32")
    few = Problem(1, 8, 1, 4096, 132)
    assert SimtFew().suits(given, few) and not SimtFew().suits(given, Problem(1, 8, 9, 4096, 132))
    rows = [family.decisions(given, HOPPER)["rows"] for family in (SimtFew(), Simt())]
    assert rows == [8, 64]


def test_tiles_that_differ_are_dealt_out_by_the_gpu() -> None:
    family = PrefillWgmma()
    window = ex.op("and", CAUSAL, ex.op("lt", ex.op("sub", ex.Index("i"), ex.Index("j")), ex.Const(1024, "int64")))
    problem = Problem(2, 8, 4096, 4096, 132)
    blocks = {}
    for name, mask in (("full", None), ("causal", CAUSAL), ("window", window)):
        given = spec(128, mask=mask)
        blocks[name] = family.blocks(given, family.decisions(given, HOPPER), problem)
    assert blocks == {"full": 132, "causal": 32 * 16, "window": 132}
    assert visited(window, problem, 2048, 2175) == 1023 + 128
    assert visited(zoo.ATTENTIONS["window"].fields["mask"], problem, 0, 127) is None


@pytest.mark.parametrize(
    ("family", "target", "instructions"),
    [
        (PrefillMma(), AMPERE, ("mma.sync", "cp.async.cg", "ldmatrix")),
        (PrefillWgmma(), HOPPER, ("wgmma.mma_async", "cp.async.bulk.tensor", "setmaxnreg", "mbarrier.try_wait")),
        (Decode(), AMPERE, ("mma.sync", "cp.async.cg", "combine_kernel")),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_instructions(family: CudaFamily, target: Target, instructions: tuple[str, ...]) -> None:
    from attncc._tvm import cuda_source

    given = spec(mask=CAUSAL)
    module = family.module(given, target, family.decisions(given, target))
    source = cuda_source(module, target.mcpu)
    assert [i for i in instructions if i not in source] == []
    assert source == cuda_source(family.module(given, target, family.decisions(given, target)), target.mcpu)
