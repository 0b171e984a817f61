"""CUDA source of a kernel as the runtime needs it: the device code alone, and how its kernels are to be called.

TVM's source has a host wrapper too, which only a C++ compiler could use. What that wrapper knows is read from it here:
the kernels, their parameters by name, their threads and their shared memory.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from attncc.runtime.cuda import nvrtc
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc.schedules.cuda.families import CudaFamily

TENSOR_MAP = "tensormap"
"""The kind of a parameter that tells TMA about a tensor; it is called map_q for q."""
_KINDS = {"int64_t": "int64", "int": "int32", "float": "float32", "double": "float64"}
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\((\d+)[^)]*\) (\w+)_kernel\(([^)]*)\) \{')
_HEADER_END = "#define ushort unsigned short\n#endif\n"
_HOST = "#include <tvm/ffi/c_api.h>"
_PREAMBLE = """\
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
struct alignas(64) CUtensorMap { uint64_t opaque[16]; };
#else
#include <cstdint>
#include <cuda.h>
#endif
#define uint unsigned int
#define uchar unsigned char
#define ushort unsigned short
#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_INF __longlong_as_double(0x7ff0000000000000LL)
#define CUDART_NAN __longlong_as_double(0x7fffffffffffffffLL)
"""
_HEADERS = {"bfloat16": "cuda_bf16.h", "float16": "cuda_fp16.h"}


@dataclass(frozen=True)
class Kernel:
    """One `__global__` function."""

    name: str
    """Without the suffix that its symbol has: "attention", "combine"."""
    threads: int
    """Of a block."""
    shared: int
    """Bytes of dynamic shared memory."""
    parameters: tuple[tuple[str, str], ...]
    """(kind, name) in order; kinds are "pointer", "tensormap", "int64", "int32", "float32" and "float64"."""

    @property
    def symbol(self) -> str:
        """Its name in the machine code."""
        return f"{self.name}_kernel"


@dataclass(frozen=True)
class Code:
    """Code and what is called in it. As text it is CUDA C++, the same for all GPUs; as `machine` code a cubin."""

    kernels: tuple[Kernel, ...]
    text: bytes

    def to_bytes(self) -> bytes:
        """One line of JSON, then the code: what the cache and packs keep."""
        head = json.dumps([asdict(kernel) for kernel in self.kernels], sort_keys=True)
        return head.encode() + b"\n" + self.text

    @classmethod
    def from_bytes(cls, data: bytes) -> Code:
        """Raises ValueError, KeyError or TypeError for anything that `to_bytes` did not make."""
        head, _, text = data.partition(b"\n")
        return cls(tuple(_kernel(each) for each in json.loads(head)), text)

    def machine(self, arch: str) -> Code:
        """This CUDA C++ as machine code for `arch`. Raises RuntimeError where it cannot be compiled."""
        return Code(self.kernels, nvrtc.compile_source(self.text, arch))


def _kernel(data: Mapping[str, Any]) -> Kernel:
    parameters = tuple((str(kind), str(name)) for kind, name in data["parameters"])
    return Kernel(str(data["name"]), int(data["threads"]), int(data["shared"]), parameters)


def generate(spec: AttentionSpec, target: Target, family: CudaFamily, decisions: Mapping[str, int]) -> Code:
    """CUDA C++ of `spec`'s kernels. Imports TVM."""
    from attncc._tvm import cuda_source

    source = cuda_source(family.module(spec, target, decisions), target.mcpu)
    return Code(kernels(source), device_code(source).encode())


def device_code(source: str) -> str:
    """What nvrtc is to compile: no header but those of the 16-bit dtypes that the code names."""
    header, found, rest = source.partition(_HEADER_END)
    code, cut, _ = rest.partition(_HOST)
    if not (found and cut):
        raise RuntimeError("TVM's CUDA source has another form than that of TVM 0.27")
    includes = "".join(f"#include <{name}>\n" for name in _HEADERS.values() if name in header)
    return f"{_PREAMBLE}{includes}{code}"


def kernels(source: str) -> tuple[Kernel, ...]:
    """The kernels of TVM's source, in the order of their definition."""
    found = []
    for threads, name, parameters in _KERNEL.findall(source):
        named = tuple(_parameter(each) for each in parameters.split(","))
        found.append(Kernel(name, int(threads), _shared(source, name), named))
    return tuple(found)


def _parameter(text: str) -> tuple[str, str]:
    *words, name = text.replace("__restrict__", "").split()
    if "*" in text:
        return "pointer", name.removesuffix("_ptr")
    if "CUtensorMap" in words:
        return TENSOR_MAP, name
    return _KINDS[words[-1]], name


def _shared(source: str, name: str) -> int:
    """Bytes that the host wrapper starts a kernel with; 0 where it has no dynamic shared memory."""
    attribute = rf"cudaFuncSetAttribute\(::{name}_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (\w+)\)"
    found = re.search(attribute, source)
    if found is None:
        return 0
    value = re.findall(rf"auto {found.group(1)} = (\d+);", source[: found.start()])
    return int(value[-1])
