"""That the kernels compile to machine code, keep to their registers, and multiply on tensor cores: where nvcc is.

PTX is made once for a kernel; ptxas makes machine code of it for each GPU.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import zoo
from cuda_assembly import assemble, to_ptx

from attncc.runtime.cuda import code
from attncc.schedules.cuda.families import CUDA, CudaFamily, PrefillMma, PrefillWgmma, Simt, SimtFew
from attncc.spec import AttentionSpec
from attncc.target import Target

pytestmark = pytest.mark.skipif(not (shutil.which("nvcc") and shutil.which("ptxas")), reason="needs nvcc and ptxas")
GPUS = ("sm_80", "sm_86", "sm_89", "sm_90a")
PRODUCTS = {"mma.sync": (0x23C,), "wgmma.mma_async": (0x9F0, 0xDF0)}
"""Tensor-core instructions of PTX, and the low 12 bits of what they are in machine code: HMMA; HGMMA with its left
operand in shared memory, and in registers.
"""
SPILLED = {("cuda.prefill.mma", 128): 32}
"""Bytes that a thread stores to local memory for want of registers, by family and width; all others: none. They are
addresses that are the same in every tile, stored before the loop over them and read once a tile.
"""
SPILLED_BY_VARIANTS = {("cuda.prefill.mma", "prefix-LM"): 12}
"""The same by name of an attention, at width 64, and on sm_90a alone."""
_LEAST_SHARED = "sm_86"


def compiled(
    family: CudaFamily, spec: AttentionSpec, folder: Path, most_spilled: int, newer: bool = False, alike: bool = False
) -> None:
    """Check `spec` on every GPU; where `newer`, that there is PTX for sm_100 too; where `alike`, with the tiles that
    fit all of them, so that one PTX serves all.
    """
    gpus = ("sm_90a",) if isinstance(family, PrefillWgmma) else GPUS
    made: dict[tuple[tuple[str, int], ...], bytes] = {}
    for gpu in gpus:
        target = gpu_target(_LEAST_SHARED if alike and len(gpus) > 1 else gpu)
        if family.declines(spec, target):
            continue
        decisions = family.decisions(spec, target)
        key = tuple(sorted(decisions.items()))
        if key not in made:
            source = code.generate(spec, target, family, decisions).text
            made[key] = to_ptx(source, gpu, folder)
            if newer and gpu != "sm_90a":
                assert b".target sm_100" in to_ptx(source, "sm_100", folder)
        spilled, machine_code = assemble(made[key], gpu, folder)
        assert max(spilled) <= most_spilled, (gpu, spilled)
        for instruction, opcodes in PRODUCTS.items():
            expected = made[key].count(instruction.encode())
            assert sum(machine_code.count(each) for each in opcodes) == expected
            assert bool(expected) == (instruction == product(family)), (gpu, instruction)
    assert made


def gpu_target(name: str) -> Target:
    return Target("cuda", name, "nvptx64-nvidia-cuda", frozenset(), 132, 0, 0, 0)


def product(family: CudaFamily) -> str | None:
    """The instruction that a family multiplies by."""
    if isinstance(family, Simt):
        return None
    return "wgmma.mma_async" if isinstance(family, PrefillWgmma) else "mma.sync"


def variants() -> Iterator[tuple[CudaFamily, str]]:
    hopper = gpu_target("sm_90a")
    for name, attention in zoo.ATTENTIONS.items():
        spec = AttentionSpec("bfloat16", 64, 64, 2, **attention.fields)
        takers = [each for each in CUDA if not each.declines(spec, hopper)]
        for family in takers:
            # Simt takes everything: here, what nobody else takes.
            wanted = not isinstance(family, Simt) or all(isinstance(each, Simt) for each in takers)
            if wanted and not isinstance(family, SimtFew):
                yield family, name


@pytest.mark.parametrize("family", [PrefillMma(), PrefillWgmma()], ids=lambda family: family.name)
def test_to_machine_code(family: CudaFamily, tmp_path: Path) -> None:
    compiled(family, AttentionSpec("float16", 64, 64, 2, **zoo.ATTENTIONS["causal"].fields), tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("family", CUDA, ids=lambda family: family.name)
def test_every_family(family: CudaFamily, dim: int, tmp_path: Path) -> None:
    dtype = "float32" if isinstance(family, Simt) else "bfloat16"
    spec = AttentionSpec(dtype, dim, dim, 2, **zoo.ATTENTIONS["causal"].fields)
    compiled(family, spec, tmp_path, SPILLED.get((family.name, dim), 0), newer=dim == 64)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), list(variants()), ids=lambda value: getattr(value, "name", value))
def test_every_variant(family: CudaFamily, name: str, tmp_path: Path) -> None:
    dtype = "float32" if isinstance(family, Simt) else "bfloat16"
    spec = AttentionSpec(dtype, 64, 64, 2, **zoo.ATTENTIONS[name].fields)
    compiled(family, spec, tmp_path, SPILLED_BY_VARIANTS.get((family.name, name), 0), alike=True)
