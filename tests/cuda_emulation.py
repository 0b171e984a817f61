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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from kernel_harness import Case
from torch import Tensor

from attncc.schedules.cuda.families import CudaFamily, Decode
from attncc.schedules.family import Problem
from attncc.target import Target

_HELPER = re.compile(r"__forceinline__ __device__ ([\w ]+?) (tvm_builtin\w+)\(([^)]*)\) \{(.*?)\n\}", re.DOTALL)
_PLAIN = {
    "ex2.approx.ftz.f32": "exp2f(x0)", "rcp.approx.ftz.f32": "1.0f / x0", "lg2.approx.ftz.f32": "log2f(x0)",
    "min.NaN.f32": "x0 != x0 || x1 != x1 ? NAN : fminf(x0, x1)",
    "max.NaN.f32": "x0 != x0 || x1 != x1 ? NAN : fmaxf(x0, x1)",
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


def run(family: CudaFamily, case: Case, folder: Path, processors: int = 4) -> Tensor:
    """The result of `case` by `family`, compiled for sm_80. Raises CalledProcessError where g++ rejects the code."""
    from attncc._tvm import cuda_source

    target = Target("cuda", "sm_80", "nvptx64-nvidia-cuda", frozenset(), processors, 0, 0, 0)
    spec = case.spec
    declined = family.declines(spec, target)
    assert declined is None, declined
    decisions = {**family.decisions(spec, target), **case.decisions}
    source = cuda_source(family.module(spec, target, decisions), "sm_80")
    library = _build(source, folder)
    batch, heads, q_len, _ = case.q.shape
    problem = Problem(batch, heads, q_len, case.k.shape[2], processors)
    shapes = family.launch(spec, decisions, problem).workspaces
    scratch = [torch.full(shape, float("nan")) for shape in shapes]
    out = torch.full((batch, heads, q_len, spec.value_dim), float("nan"), dtype=case.q.dtype)
    tensors = {"q": case.q, "k": case.k, "v": case.v, "out": out}
    tensors |= {f"t{n}": t for n, t in enumerate(case.extras)} | {f"w{n}": t for n, t in enumerate(scratch)}
    kv_heads = heads // spec.group
    if isinstance(family, Decode):
        splits = shapes[0][2]
        _call(library, source, "attention", tensors, case, (splits, kv_heads, batch))
        if splits > 1:
            _call(library, source, "combine", tensors, case, (q_len * spec.group, kv_heads, batch))
    else:
        _call(library, source, "attention", tensors, case, (-(-q_len // decisions["rows"]), heads, batch))
    return out


def _build(source: str, folder: Path) -> ctypes.CDLL:
    """Compile the device code with the instructions replaced."""
    device = _device_only(source)
    name = hashlib.sha256(device.encode()).hexdigest()[:16]
    text = f'#include "{Path(__file__).with_name("cuda_emulation.h")}"\n{device}\n'
    for kernel in _kernels(source):
        parameters = ", ".join(f"{kind} {each}" for kind, each in kernel["parameters"])
        given = ", ".join(each for _, each in kernel["parameters"])
        call = f"emu_launch([&]() {{ {kernel['name']}({given}); }}, gx, gy, gz, {kernel['threads']});"
        text += f'extern "C" void run_{kernel["name"]}({parameters}, int gx, int gy, int gz) {{ {call} }}\n'
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


def _kernels(source: str) -> list[dict[str, Any]]:
    """Name, threads and parameters (type, name) of each kernel."""
    kernels = []
    pattern = r'extern "C" __global__ void __launch_bounds__\((\d+)[^)]*\) (\w+)\(([^)]*)\) \{'
    for threads, name, parameters in re.findall(pattern, source):
        each = [
            p.replace("__restrict__", "").replace("nv_bfloat16", "__nv_bfloat16").split() for p in parameters.split(",")
        ]
        kernels.append({"name": name, "threads": int(threads), "parameters": [(" ".join(p[:-1]), p[-1]) for p in each]})
    return kernels


def _call(
    library: ctypes.CDLL, source: str, name: str, tensors: Mapping[str, Tensor], case: Case, grid: Sequence[int]
) -> None:
    """Run a kernel: its parameters are found by their names."""
    kernel = next(k for k in _kernels(source) if k["name"] == f"{name}_kernel")
    q, k = case.q, case.k
    values: dict[str, Any] = {"B": q.shape[0], "H": q.shape[1], "G": k.shape[1], "Sq": q.shape[2], "Skv": k.shape[2]}
    if "w0" in tensors:
        values["splits"] = values["n_splits"] = tensors["w0"].shape[2]
    values |= {f"n{n}": v for n, v in enumerate(case.integers)}
    values |= {f"s{n}{suffix}": v for n, v in enumerate(case.scalars) for suffix in ("", "_f32")}
    for tensor, value in tensors.items():
        values[f"{tensor}_ptr"] = value.data_ptr()
        values |= {f"{tensor}_stride{n}": s for n, s in enumerate(value.stride())}
        values |= {f"{tensor}_size{n}": s for n, s in enumerate(value.shape)}
    kinds = {"int64_t": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float, "double": ctypes.c_double}
    arguments = []
    for kind, each in kernel["parameters"]:
        value = values[each.removesuffix("_i32")]
        arguments.append(ctypes.c_void_p(value) if "*" in kind else kinds[kind](value))
    getattr(library, f"run_{kernel['name']}")(*arguments, *map(ctypes.c_int, grid))
