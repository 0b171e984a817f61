"""NVIDIA's driver, called through ctypes: load machine code, tell TMA about tensors, start kernels.

The context is torch's own (a device's primary context), the streams are torch's: nothing here allocates memory or
waits, so that a call can be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch

INVALID_CONTEXT = 201
_SHARED_ATTRIBUTE = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
_DATA_TYPES = {"float16": 6, "bfloat16": 9}
"""CUtensorMapDataType."""
_SWIZZLE_128 = 3
TENSOR_MAP_BYTES = 128


class DriverError(RuntimeError):
    """A call of the driver that failed."""


@cache
def library() -> ctypes.CDLL:
    """The driver. Raises OSError where it is not installed."""
    loaded = ctypes.CDLL("libcuda.so.1")
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    loaded.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
    loaded.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
    loaded.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    loaded.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    loaded.cuTensorMapEncodeTiled.argtypes = [
        pointer, ctypes.c_int, number, pointer, pointer, pointer, pointer, pointer, *[ctypes.c_int] * 4
    ]  # fmt: skip
    loaded.cuTensorMapReplaceAddress.argtypes = [pointer, pointer]
    return loaded


class Module:
    """Machine code loaded into the context of one device."""

    def __init__(self, cubin: bytes, device: int) -> None:
        make_current(device)
        self._handle = ctypes.c_void_p()
        check("cuModuleLoadData", library().cuModuleLoadData(ctypes.byref(self._handle), cubin))

    def function(self, symbol: str, shared: int) -> int:
        """Handle of a kernel that will be started with `shared` bytes of dynamic shared memory."""
        found = ctypes.c_void_p()
        status = library().cuModuleGetFunction(ctypes.byref(found), self._handle, symbol.encode())
        check(f"cuModuleGetFunction of {symbol}", status)
        status = library().cuFuncSetAttribute(found, _SHARED_ATTRIBUTE, shared)
        check(f"{shared} bytes of shared memory for {symbol}", status)
        return found.value or 0


def make_current(device: int) -> None:
    """Make the device's primary context, which torch uses, that of the calling thread."""
    driver = library()
    context, number = ctypes.c_void_p(), ctypes.c_int()
    check("cuInit", driver.cuInit(0))
    check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(number), device))
    check("cuDevicePrimaryCtxRetain", driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), number))
    check("cuCtxSetCurrent", driver.cuCtxSetCurrent(context))


# Without the objects that torch.cuda makes of these numbers, which cost a call some microseconds. A torch without CUDA
# has neither.
current_device: Callable[[], int] = getattr(torch._C, "_cuda_getDevice", lambda: -1)
"""Number of torch's current CUDA device."""
current_stream: Callable[[int], int] = getattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
"""Handle of torch's current stream on a device."""


def launch(function: int, grid: tuple[int, int, int], threads: int, shared: int, stream: int, parameters: int) -> int:
    """Start a kernel; `parameters` is the address of an array of the parameters' addresses. Gives the status, which is
    0 where all is well: see `check`.
    """
    status: int = library().cuLaunchKernel(function, *grid, threads, 1, 1, shared, stream, parameters, None)
    return status


def encode_tensor_map(
    place: int, dtype: str, address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]
) -> None:
    """Write the description of a tensor for TMA to `place` (64-byte aligned): sizes and box in elements, innermost
    first; strides in bytes, of all dimensions but the innermost. Rows in shared memory are swizzled in 128 bytes.
    """
    rank = len(sizes)
    given = (
        (ctypes.c_uint64 * rank)(*sizes),
        (ctypes.c_uint64 * (rank - 1))(*strides),
        (ctypes.c_uint32 * rank)(*box),
        (ctypes.c_uint32 * rank)(*[1] * rank),
    )
    status = library().cuTensorMapEncodeTiled(place, _DATA_TYPES[dtype], rank, address, *given, 0, _SWIZZLE_128, 0, 0)
    check(f"cuTensorMapEncodeTiled of sizes {list(sizes)}, strides {list(strides)}", status)


def replace_address(place: int, address: int) -> None:
    """Let a tensor map that was encoded describe another tensor of the same sizes and strides."""
    check("cuTensorMapReplaceAddress", library().cuTensorMapReplaceAddress(place, address))


def check(what: str, status: int) -> None:
    """Raise DriverError, in the driver's words, for a status that is not 0."""
    if status:
        text = ctypes.c_char_p()
        library().cuGetErrorString(status, ctypes.byref(text))
        raise DriverError(f"{what}: {(text.value or b'unknown').decode()} (CUDA error {status})")
