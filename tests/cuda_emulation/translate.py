"""CUDA C++ as TVM generates it to C++ that calls the emulation: see `device/emulated.h`."""

from __future__ import annotations

import re

_HELPER = re.compile(
    r"__forceinline__ __device__ ([\w ]+?) ((?:tvm_builtin|ptx_)\w+)\(([^)]*)\) \{(.*?)\n\}", re.DOTALL
)
_OWN = re.compile(r"__device__ __forceinline__ \w+ attncc_(?!fence)\w+\(.*\}\n")
_DESCRIPTOR = re.compile(r"union GmmaDescriptor\n\{.*?\n\};", re.DOTALL)
_KERNEL = re.compile(r'(extern "C" __global__ void [^{;]*\{.*?\n\}\n)', re.DOTALL)
_SIGNATURE = re.compile(r'extern "C" __global__ void [^{;]*?(\w+_kernel)\(([^)]*)\) \{')
_TYPE = re.compile(r"\s*(?:const )?(?:__grid_constant__ )?(?:const )?(.*?)\s*(?:__restrict__ )?\w+\s*")
"""A parameter with its type."""
_INSTRUCTION = re.compile(r"\b(?:ldmatrix|stmatrix|mma|wgmma|cp|ld|st|bar|mbarrier|fence|setmaxnreg|elect)\.[\w.:]+")
_PLAIN = {
    "ex2.approx.ftz.f32": "exp2f(x0)", "rcp.approx.ftz.f32": "1.0f / x0", "lg2.approx.ftz.f32": "log2f(x0)",
    "add.s32": "x0 + x1",
    "min.NaN.f32": "x0 != x0 || x1 != x1 ? NAN : fminf(x0, x1)",
    "max.NaN.f32": "x0 != x0 || x1 != x1 ? NAN : fmaxf(x0, x1)",
    "sub.f16x2": "halves(x0, x1, 0, [](float a, float b, float) { return a - b; })",
    "mul.f16x2": "halves(x0, x1, 0, [](float a, float b, float) { return a * b; })",
    "fma.rn.bf16x2": "upper_halves(x0, x1, x2, [](double a, double b, double c) { return a * b + c; })",
}  # fmt: skip
_HEAD = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

#define __int_as_float float_of  // what CUDA's infinity is made of
#define __longlong_as_double double_of

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulated.h"

using std::max;
using std::min;
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short
#define HOST_DEVICE
#define __cvta_generic_to_shared emu_shared_address
template <class To, class From> static To same_bits(From from) { To to; memcpy(&to, &from, sizeof to); return to; }
static float float_of(uint32_t bits) { return same_bits<float>(bits); }
template <class F> static uint32_t halves(uint32_t a, uint32_t b, uint32_t c, F f) {
  auto one = [&](int n) {
    auto of = [&](uint32_t x) { return __half2float(same_bits<__half>((uint16_t)(x >> n))); };
    return (uint32_t)same_bits<uint16_t>(__float2half_rn(f(of(a), of(b), of(c)))) << n;
  };
  return one(0) | one(16);
}
template <class F> static uint32_t upper_halves(uint32_t a, uint32_t b, uint32_t c, F f) {
  auto one = [&](int n) {
    auto of = [&](uint32_t x) { return (double)same_bits<float>(x >> n << 16); };
    return (uint32_t)same_bits<uint16_t>(__float2bfloat16_rn((float)f(of(a), of(b), of(c)))) << n;
  };
  return one(0) | one(16);
}
static double double_of(uint64_t bits) { return same_bits<double>(bits); }
template <class T> static T shuffled(T value, int source) { emu_shuffle(&value, sizeof value, source); return value; }
#define __shfl_sync(mask, value, source, width) shuffled(value, source)
#define __shfl_xor_sync(mask, value, by, width) shuffled(value, (int)threadIdx.x % 32 ^ (by))
"""


def translate(source: str) -> str:
    """A library of `launch_<kernel>(parameters, grid, threads, shared bytes)`; each gives a message or null."""
    text = _HEAD + _device_only(source)
    for symbol, parameters in _SIGNATURE.findall(source):
        types = [_TYPE.fullmatch(each)[1] for each in parameters.split(",")]
        values = ", ".join(f"*({each.replace('nv_bfloat16', '__nv_bfloat16')}*)p[{n}]" for n, each in enumerate(types))
        body = f"[](void* all) {{ void** p = (void**)all; {symbol}({values}); }}"
        text += (
            f'extern "C" const char* launch_{symbol}(void** p, int gx, int gy, int gz, int threads, int shared) {{\n'
            f"  return emu_launch({body}, p, gx, gy, gz, threads, shared);\n}}\n"
        )
    return text


def _device_only(source: str) -> str:
    """The functions that kernels consist of, as C++."""
    found = _DESCRIPTOR.findall(source)
    found += [_plain(match) for match in _OWN.finditer(source)]
    found += [f"static void {name}(float*) {{}}" for name in sorted(set(re.findall(r"attncc_fence_\d+", source)))]
    found += [_replaced(match) for match in _HELPER.finditer(source)]
    text = "\n".join(_KERNEL.findall(source))
    text = re.sub(r'extern "C" __global__ void __launch_bounds__\([^)]*\)', "static void", text)
    text = re.sub(r"extern __shared__ __align__\(\d+\) uchar (\w+)\[\];", r"uchar* \1 = emu_shared_memory();", text)
    return "\n".join([*found, text.replace("nv_bfloat16", "__nv_bfloat16")])


def _plain(match: re.Match[str]) -> str:
    text = match.group(0).replace("__device__ __forceinline__", "static inline")
    for instruction, expression in _PLAIN.items():
        if f'"{instruction} ' in text:
            return text[: text.index("{")] + f"{{ return {expression}; }}\n"
    return text


def _replaced(match: re.Match[str]) -> str:
    result, name, parameters, body = match.groups()
    names = [p.split()[-1].lstrip("&*") for p in parameters.split(",")] if parameters.strip() else []
    return f"static inline {result} {name}({parameters}) {{ {_body(name, names, body)} }}\n"


def _body(name: str, names: list[str], body: str) -> str:
    """What stands for one of TVM's helpers: for an instruction, or for an intrinsic."""
    if "asm volatile" in body:
        text = "".join(re.findall(r'"([^"]*)"', body)).replace(r"\n", " ")
        found = _INSTRUCTION.search(text)
        if found is None:
            raise NotImplementedError(f"no emulation of {text!r}")
        return _instruction(found.group(0), text[found.start() :], name, names)
    if "cta_sync" in name:
        return "emu_block_sync();"
    return "emu_warp_sync();" if "warp_sync" in name else body


def _instruction(ptx: str, text: str, name: str, names: list[str]) -> str:
    """A call of the emulation for `ptx`, of which `text` is what follows too, with the operands `names`."""
    if ptx in _CALLS:
        return _CALLS[ptx].format(*names)
    if ptx in _COUNTED:
        return f"{_COUNTED[ptx]}({text.removeprefix(ptx).split(';')[0].strip()});"
    for start, write in _WRITERS.items():
        if ptx.startswith(start):
            return write(ptx, name, names)
    raise NotImplementedError(f"no emulation of {ptx!r}")


_CALLS = {
    "cp.async.commit_group": "emu_copy_commit();",
    "cp.async.wait_all": "emu_copy_wait(0);",
    "cp.async.bulk.commit_group": "emu_bulk_commit();",
    "ld.global.b32": "memcpy(&{0}, {1}, 4);",
    "st.global.b32": "memcpy((void*){0}, &{1}, 4);",
    "bar.sync": "emu_named_barrier({0}, {1}, true);",
    "bar.arrive": "emu_named_barrier({0}, {1}, false);",
    "elect.sync": "return emu_elect();",
    "fence.proxy.async.shared::cta": "emu_fence_proxy();",
    "fence.mbarrier_init.release.cluster": "emu_fence_proxy();",
    "setmaxnreg.inc.sync.aligned.u32": "",
    "setmaxnreg.dec.sync.aligned.u32": "",
    "mbarrier.init.shared.b64": "emu_mbarrier_init({0}, {1});",
    "mbarrier.arrive.shared.b64": "emu_mbarrier_arrive({0}, {1});",
    "mbarrier.arrive.expect_tx.shared.b64": "emu_mbarrier_expect({0}, {1});",
    "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64": "emu_mbarrier_wait(emu_shared_address({0}), {1});",
    "wgmma.fence.sync.aligned": "emu_wgmma_fence();",
    "wgmma.commit_group.sync.aligned": "emu_wgmma_commit();",
}
_COUNTED = {
    "cp.async.wait_group": "emu_copy_wait",
    "cp.async.bulk.wait_group.read": "emu_bulk_wait",
    "wgmma.wait_group.sync.aligned": "emu_wgmma_wait",
}
"""With a number of groups in the text."""


def _load_matrix(ptx: str, name: str, names: list[str]) -> str:
    *registers, place = names
    transposed = str(".trans" in ptx).lower()
    return f"uint32_t* r[] = {{{_all(registers, '&')}}}; emu_load_matrix(r, {len(registers)}, {place}, {transposed});"


def _store_matrix(ptx: str, name: str, names: list[str]) -> str:
    place, *registers = names
    return f"uint32_t r[] = {{{_all(registers)}}}; emu_store_matrix({place}, r, {len(registers)});"


def _mma(ptx: str, name: str, names: list[str]) -> str:
    a, b, c = (_all(names[i:j]) for i, j in ((4, 8), (8, 10), (10, 14)))
    arrays = f"float* d[] = {{{_all(names[:4], '&')}}}; uint32_t a[] = {{{a}}}, b[] = {{{b}}}; float c[] = {{{c}}};"
    return f"{arrays} emu_mma(d, a, b, c, {_bfloat(ptx)});"


def _copy(ptx: str, name: str, names: list[str]) -> str:
    width = name.rsplit("_", 1)[1]
    size = "__src_size" if "src_size" in name else width
    return f"emu_copy({names[0]}, {names[1]}, {size}, {width});"


def _tensor_load(ptx: str, name: str, names: list[str]) -> str:
    to, tensor, *at, barrier = names
    return f"int at[] = {{{_all(at)}}}; emu_tensor_load({to}, {tensor}, at, {barrier});"


def _tensor_store(ptx: str, name: str, names: list[str]) -> str:
    tensor, *at, place = names
    return f"int at[] = {{{_all(at)}}}; emu_tensor_store({tensor}, at, {place});"


def _wgmma(ptx: str, name: str, names: list[str]) -> str:
    sums = [each for each in names if re.fullmatch(r"__d\d+", each)]
    a = [each for each in names if re.fullmatch(r"__a\d+", each)]
    *_, b_at, scale = names
    # Behind the dtypes: the signs of a and b, then what of a (where it is in shared memory) and b is transposed.
    signs_and_orders = re.search(rf"{ptx.split('.', 4)[-1].replace('.', '_')}((?:_\d)+)$", name)[1]
    *signs_and_a, b_transposed = signs_and_orders.strip("_").split("_")
    if signs_and_a != (["1", "1"] if a else ["1", "1", "0"]):
        raise NotImplementedError(f"no emulation of {name}")
    left = f"uint32_t a[] = {{{_all(a)}}};" if a else "uint32_t* a = nullptr;"
    return (
        f"float* d[] = {{{_all(sums, '&')}}}; {left} emu_wgmma(d, {2 * len(sums)}, a, {'0' if a else names[-3]}, "
        f"{b_at}, {scale}, {b_transposed}, {_bfloat(ptx)});"
    )


_WRITERS = {
    "ldmatrix": _load_matrix, "stmatrix": _store_matrix, "mma.sync": _mma, "wgmma.mma_async": _wgmma,
    "cp.async.ca": _copy, "cp.async.cg": _copy,
    "cp.async.bulk.tensor.4d.shared": _tensor_load, "cp.async.bulk.tensor.4d.global": _tensor_store,
}  # fmt: skip
"""By the beginning of an instruction."""


def _all(names: list[str], before: str = "") -> str:
    return ", ".join(before + each for each in names)


def _bfloat(ptx: str) -> str:
    return str("bf16" in ptx).lower()
