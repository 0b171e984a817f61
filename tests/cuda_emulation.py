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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from kernel_harness import Case
from torch import Tensor

from attncc.runtime import stats
from attncc.runtime.cuda import code, driver
from attncc.runtime.cuda.build import CudaKernel
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


_TYPES = {
    "pointer": "emu_pointer", "int64": "int64_t", "int32": "int", "float32": "float", "float64": "double",
    "tensormap": "CUtensorMap",
}  # fmt: skip


def cuda_include() -> Path | None:
    """CUDA's headers, or None where it is not installed."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent.parent] if nvcc else []
    places += sorted(Path("/usr/local").glob("cuda*"))
    return next((place / "include" for place in places if (place / "include" / "cuda_fp16.h").exists()), None)


def available() -> bool:
    """Whether kernels can be compiled here."""
    return cuda_include() is not None and shutil.which("g++") is not None


def run(family: CudaFamily, case: Case, folder: Path, processors: int = 4, arch: str = "sm_80") -> Tensor:
    """The first output of `case` by `family`, started by the runtime's own code.

    Raises CalledProcessError where g++ rejects the code.
    """
    spec, target = case.spec, Target("cuda", arch, TRIPLE, frozenset(), processors, 0, 0, 0)
    declined = family.declines(spec, target)
    assert declined is None, declined
    decisions = {**family.decisions(spec, target), **case.decisions}
    source = code.generate(spec, target, family, decisions)
    library = _build(source, folder)
    loaded = {kernel.name: (_address(library, kernel), kernel) for kernel in code.kernels(source)}
    kernel = CudaKernel(spec, target, family, decisions, -1, loaded, stats.kernel(family.name), library)
    batch, heads, q_len, _ = case.q.shape
    problem = Problem(batch, heads, q_len, case.k.shape[2], processors)
    operands = (case.q, case.k, case.v, case.extras, case.scalars, case.integers)
    with _no_gpu():
        return CudaPlan(kernel, problem, "bhsd", operands).run(operands)[0]


@contextmanager
def _no_gpu() -> Iterator[None]:
    """The CPU is torch's CUDA device -1; what is not written is NaN."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "current_device", lambda: -1)
        patch.setattr(driver, "current_stream", lambda device: 0)
        patch.setattr(driver, "launch", _launch)
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


def _address(library: ctypes.CDLL, kernel: code.Kernel) -> int:
    return ctypes.cast(getattr(library, f"launch_{kernel.symbol}"), ctypes.c_void_p).value or 0


def _launch(function: int, grid: tuple[int, int, int], threads: int, shared: int, stream: int, parameters: int) -> int:
    ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int] * 3)(function)(parameters, *grid)
    return 0


def _build(source: str, folder: Path) -> ctypes.CDLL:
    """Compile the device code with the instructions replaced."""
    device = _device_only(source)
    name = hashlib.sha256(device.encode()).hexdigest()[:16]
    text = f'#include "{Path(__file__).with_name("cuda_emulation.h")}"\n{device}\n'
    for kernel in code.kernels(source):
        values = ", ".join(f"*({_TYPES[kind]}*)p[{n}]" for n, (kind, _) in enumerate(kernel.parameters))
        call = f"emu_launch([&]() {{ {kernel.symbol}({values}); }}, gx, gy, gz, {kernel.threads});"
        text += f'extern "C" void launch_{kernel.symbol}(void** p, int gx, int gy, int gz) {{ {call} }}\n'
    path = folder / f"{name}.cpp"
    path.write_text(text)
    library = path.with_suffix(".so")
    options = ["-O1", "-w", "-std=c++17", "-shared", "-fPIC", f"-I{cuda_include()}"]
    subprocess.run(["g++", *options, str(path), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


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
