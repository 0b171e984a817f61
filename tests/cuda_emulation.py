"""Runs the CUDA code that TVM generates for a kernel on the CPU, and gives its result.

The device functions stay as they are; only the PTX instructions in them are replaced, by functions of
`cuda_emulation.h`. Wrong indices and wrong arithmetic show; races and missing waits do not, for copies arrive at once.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kernel_harness import Case
from torch import Tensor

from attncc.runtime.cuda import build, devices, driver, nvrtc
from attncc.runtime.cuda.devices import TRIPLE
from attncc.runtime.cuda.plan import CudaPlan
from attncc.schedules.cuda.families import CudaFamily
from attncc.schedules.family import Problem
from attncc.target import Target

_HELPER = re.compile(r"__forceinline__ __device__ ([\w ]+?) (tvm_builtin\w+)\(([^)]*)\) \{(.*?)\n\}", re.DOTALL)
_PLAIN = {
    "ex2.approx.ftz.f32": "exp2f(x0)", "rcp.approx.ftz.f32": "1.0f / x0", "lg2.approx.ftz.f32": "log2f(x0)",
    "min.NaN.f32": "x0 != x0 || x1 != x1 ? NAN : fminf(x0, x1)",
    "max.NaN.f32": "x0 != x0 || x1 != x1 ? NAN : fmaxf(x0, x1)",
}  # fmt: skip


_TYPE = re.compile(r"\s*(?:const )?(?:__grid_constant__ )?(?:const )?(.*?)\s*(?:__restrict__ )?\w+\s*")
"""A parameter with its type."""
DEVICE = -1
"""What torch calls the device of CPU tensors."""


def cuda_include() -> Path | None:
    """CUDA's headers, or None where it is not installed."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent.parent] if nvcc else []
    places += sorted(Path("/usr/local").glob("cuda*"))
    return next((place / "include" for place in places if (place / "include" / "cuda_fp16.h").exists()), None)


def available() -> bool:
    """Whether kernels can be compiled here."""
    return cuda_include() is not None and shutil.which("g++") is not None


def run(family: CudaFamily, case: Case, folder: Path, processors: int = 4, arch: str = "sm_80") -> Sequence[Tensor]:
    """The outputs of `case` by `family`, built, loaded and started by the runtime.

    Raises CalledProcessError where g++ rejects the code.
    """
    spec = case.spec
    batch, heads, q_len, _ = case.q.shape
    problem = Problem(batch, heads, q_len, case.k.shape[2], processors)
    operands = (case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    with gpu(folder, processors, arch) as target:
        declined = family.declines(spec, target)
        assert declined is None, declined
        return CudaPlan(build.kernel(spec, target, family, DEVICE), problem, "bhsd", operands).run(operands)


@contextmanager
def gpu(folder: Path, processors: int = 4, arch: str = "sm_80") -> Iterator[Target]:
    """CPU tensors are those of an emulated GPU, torch's device -1, and memory that is not written is NaN.

    Its machine code is the name of a library in `folder`.
    """
    target = Target("cuda", arch, TRIPLE, frozenset(), processors, 0, 0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNCC_CACHE_DIR", str(folder / "cache"))
        patch.setattr(devices, "target", lambda device: target)
        patch.setattr(nvrtc, "compile_source", lambda source, arch: _build(source.decode(), folder))
        patch.setattr(driver, "Module", _Module)
        patch.setattr(driver, "launch", _launch)
        patch.setattr(driver, "current_device", lambda: DEVICE)
        patch.setattr(driver, "current_stream", lambda device: 0)
        torch.use_deterministic_algorithms(True)
        build.forget()
        try:
            yield target
        finally:
            torch.use_deterministic_algorithms(False)
            build.forget()


class _Module:
    """Stands for `driver.Module`."""

    def __init__(self, library: bytes, device: int) -> None:
        self.library = ctypes.CDLL(library.decode())

    def function(self, symbol: str, shared: int) -> int:
        return ctypes.cast(getattr(self.library, f"launch_{symbol}"), ctypes.c_void_p).value or 0


def _launch(function: int, grid: tuple[int, int, int], threads: int, shared: int, stream: int, parameters: int) -> int:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int] * 4)(function)(parameters, *grid, threads)
    return 0


def _build(source: str, folder: Path) -> bytes:
    """Compile the device code with the instructions replaced."""
    device = _device_only(source)
    name = hashlib.sha256(device.encode()).hexdigest()[:16]
    text = f'#include "{Path(__file__).with_name("cuda_emulation.h")}"\n{device}\n'
    for symbol, parameters in re.findall(r'extern "C" __global__ void [^{;]*?(\w+_kernel)\(([^)]*)\) \{', source):
        types = [_TYPE.fullmatch(each)[1] for each in parameters.split(",")]
        values = ", ".join(f"*({each.replace('nv_bfloat16', '__nv_bfloat16')}*)p[{n}]" for n, each in enumerate(types))
        call = f"emu_launch([&]() {{ {symbol}({values}); }}, gx, gy, gz, threads);"
        text += f'extern "C" void launch_{symbol}(void** p, int gx, int gy, int gz, int threads) {{ {call} }}\n'
    path = folder / f"{name}.cpp"
    path.write_text(text)
    library = path.with_suffix(".so")
    options = ["-O1", "-w", "-std=c++17", "-shared", "-fPIC", f"-I{cuda_include()}"]
    subprocess.run(["g++", *options, str(path), "-o", str(library)], check=True)
    return str(library).encode()


def _device_only(source: str) -> str:
    """The functions that kernels consist of, as C++."""
    found = [_plain(m) for m in re.finditer(r"__device__ __forceinline__ \w+ attncc_(?!fence)\w+\(.*\}\n", source)]
    found += [f"static void {name}(float*) {{}}" for name in sorted(set(re.findall(r"attncc_fence_\d+", source)))]
    helpers = [_HELPER.sub(_replaced, m.group(0)) for m in _HELPER.finditer(source)]
    kernels = re.findall(r'(extern "C" __global__ void [^{;]*\{.*?\n\}\n)', source, re.DOTALL)
    text = "\n".join(kernels)
    text = re.sub(r'extern "C" __global__ void __launch_bounds__\([^)]*\)', "static void", text)
    text = re.sub(r"extern __shared__ __align__\(\d+\) uchar (\w+)\[\];", r"uchar* \1 = emu_shared;", text)
    return "\n".join([*found, *helpers, text.replace("nv_bfloat16", "__nv_bfloat16")])


def _plain(match: re.Match[str]) -> str:
    text = match.group(0).replace("__device__ __forceinline__", "static inline")
    for instruction, expression in _PLAIN.items():
        if f'"{instruction} ' in text:
            return text[: text.index("{")] + f"{{ return {expression}; }}\n"
    return text


def _replaced(match: re.Match[str]) -> str:
    result, name, parameters, body = match.groups()
    names = [p.split()[-1].lstrip("&*") for p in parameters.split(",")] if parameters.strip() else []
    return f"static inline {result} {name}({parameters}) {{ {_instruction(name, names, body)} }}\n"


def _instruction(name: str, names: list[str], body: str) -> str:
    """What stands for the PTX (or the intrinsic) in one of TVM's helpers."""
    found = re.search(r'asm volatile\("([^"]*)', body)
    if found is None:
        if "cta_sync" in name:
            return "emu_block_sync();"
        if "warp_sync" in name:
            return "emu_warp_sync();"
        return "return emu_shared_address(p);" if "cvta" in name else body
    ptx = found.group(1)
    if ptx.startswith("ldmatrix"):
        registers = ", ".join(f"&{n}" for n in names[:-1])
        transposed = str(".trans" in ptx).lower()
        return f"uint32_t* r[] = {{{registers}}}; emu_load_matrix(r, {len(names) - 1}, {names[-1]}, {transposed});"
    if ptx.startswith("mma.sync"):
        to = ", ".join(f"&{n}" for n in names[:4])
        a, b, c = (", ".join(names[i:j]) for i, j in ((4, 8), (8, 10), (10, 14)))
        bfloat = str("bf16" in ptx).lower()
        arrays = f"float* d[] = {{{to}}}; uint32_t a[] = {{{a}}}, b[] = {{{b}}}; float c[] = {{{c}}};"
        return f"{arrays} emu_mma(d, a, b, c, {bfloat});"
    if re.match(r"cp\.async\.c[ag]\.", ptx):
        width = name.rsplit("_", 1)[1]
        size = "__src_size" if "src_size" in name else width
        return f"emu_copy({names[0]}, {names[1]}, {size}, {width});"
    if ptx.startswith("cp.async"):
        return ""
    if ptx.startswith("ld.global"):
        return f"memcpy(&{names[0]}, {names[1]}, 4);"
    if ptx.startswith("st.global"):
        return f"memcpy((void*){names[0]}, &{names[1]}, 4);"
    raise NotImplementedError(f"no emulation of {ptx!r}")
