"""That the emulation finds races: each of these takes one wait or barrier out of a kernel's code, and is told of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cuda_emulation
import pytest
import zoo
from cuda_emulation import EmulationError

from attncc.schedules.cuda.families import CudaFamily, Decode, PrefillMma, PrefillWgmma, Simt

pytestmark = pytest.mark.skipif(not cuda_emulation.available(), reason="needs the headers of CUDA and g++")


def without(call: str, nth: int) -> Callable[[str], str]:
    """Code without the nth statement of a kernel that calls `call`."""

    def edit(source: str) -> str:
        kernel = source.index('extern "C" __global__ void')
        found = list(re.finditer(rf"^ *\w*{call}\w*\(.*\);$", source[kernel:], re.MULTILINE))
        start, end = (kernel + place for place in found[nth].span())
        return source[:start] + source[end:]

    return edit


WITHOUT: list[tuple[CudaFamily, str, int, str]] = [
    (PrefillMma(), "cp_async_wait", 0, "ldmatrix.* while the cp.async .* is under way"),
    (Simt(), "cta_sync", 0, "load.*, which the store .* wrote: no barrier"),
    (PrefillWgmma(), "mbarrier_wait", 4, "wgmma.* while the TMA load .* is under way"),
    (PrefillWgmma(), "wgmma_wait_group", 0, "registers that its wgmma is still adding to"),
]
"""Family, statement, which of them, and what is said."""
QUICK = (WITHOUT[0], WITHOUT[2])
"""What the default run takes out."""
MORE: list[tuple[CudaFamily, str, int, str]] = [
    (PrefillMma(), "cta_sync", 1, "cp.async.* which the ldmatrix .* reads: no barrier"),
    (Simt(), "cta_sync", 2, "store.*, which the load .* reads: no barrier"),
    (Decode(), "cp_async_wait", 0, "ldmatrix.* while the cp.async .* is under way"),
    (Decode(), "warp_sync", 0, "ldmatrix.*, which the cp.async .* wrote: no barrier"),
    (Decode(), "warp_sync", 1, "cp.async.*, which the ldmatrix .* reads: no barrier"),
    (Decode(), "cta_sync", 2, "store.*, which the load .* reads: no barrier"),
    (PrefillWgmma(), "mbarrier_wait", 0, "TMA load"),
    (PrefillWgmma(), "mbarrier_wait", 3, "wgmma.* TMA load"),
    (PrefillWgmma(), "wgmma_wait_group", 2, "registers that its wgmma is still adding to"),
    (PrefillWgmma(), "wgmma_fence", 1, "no wgmma.fence lies between"),
    (PrefillWgmma(), "fence_proxy", 1, "TMA store .* which the stmatrix .* wrote: no fence.proxy.async"),
    (PrefillWgmma(), "warp_sync", 0, "TMA store.*, which the stmatrix .* wrote: no barrier"),
    (PrefillWgmma(), "bulk_wait_group", 0, "TMA load.* while the TMA store .* may still read it"),
    (PrefillWgmma(), "mbarrier_arrive_arrive", 1, "deadlock: .* an mbarrier"),
]


@pytest.mark.parametrize(
    ("family", "call", "nth", "said"),
    [
        pytest.param(*each, id=f"{each[0].name}-{each[1]}-{each[2]}", marks=[pytest.mark.slow] * (each not in QUICK))
        for each in WITHOUT + MORE
    ],
)
def test_found(family: CudaFamily, call: str, nth: int, said: str, tmp_path: Path) -> None:
    sizes = {"prefill": (1, 1, 290, 290), "decode": (1, 1, 1, 2000), "any": (1, 1, 20, 70)}[family.regime]
    case = zoo.case("causal", "float32" if isinstance(family, Simt) else "bfloat16", sizes, dims=(64, 64), group=2)
    hopper, processors = isinstance(family, PrefillWgmma), 2 if isinstance(family, Decode) else 1
    with pytest.raises(EmulationError, match=said):
        cuda_emulation.run(family, case, tmp_path, processors, "sm_90a" if hopper else "sm_80", edit=without(call, nth))
