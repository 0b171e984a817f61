"""The parameters of a call's kernels in memory, as the driver wants them: values, and tables of their addresses.

What follows from sizes and strides is written once, when a frame is made. A call writes its addresses and scalars, in
one stroke, and describes tensors to TMA anew only where they moved.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attncc.runtime.cuda import driver
from attncc.runtime.cuda.code import TENSOR_MAP, Kernel

_FORMATS = {"pointer": "Q", "int64": "q", "float64": "d", "int32": "i", "float32": "f"}
_SUFFIXES = ("_i32", "_f32", "_f64")
"""Of parameters that TVM has converted on their way into a kernel."""
_ALIGNMENT = 64


@dataclass(frozen=True)
class TensorMap:
    """What TMA is told of a tensor, but its address: sizes and box in elements, innermost first, strides in bytes."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    box: tuple[int, ...]


class Shape:
    """Where each parameter lies in a frame: the same for all frames of a plan."""

    def __init__(self, kernels: Sequence[Kernel], moving: Mapping[str, int], maps: Mapping[str, TensorMap]) -> None:
        """`moving` are the names that change from call to call, with their place among the values of a call."""
        parameters = list(dict.fromkeys(each for kernel in kernels for each in kernel.parameters))
        mapped = [name for kind, name in parameters if kind == TENSOR_MAP]
        plain = [each for each in parameters if each[0] != TENSOR_MAP]
        # Wide ones first keeps every value aligned.
        plain.sort(key=lambda each: (bare(each[1]) not in moving, struct.calcsize(_FORMATS[each[0]]) != 8))
        changing = [each for each in plain if bare(each[1]) in moving]
        self.maps = {name: (number * driver.TENSOR_MAP_BYTES, maps[name]) for number, name in enumerate(mapped)}
        self.mapped = [(moving[name.removeprefix("map_")], at, tensor) for name, (at, tensor) in self.maps.items()]
        self.start = len(mapped) * driver.TENSOR_MAP_BYTES
        self.sources = [moving[bare(name)] for _, name in changing]
        self.changing = struct.Struct("=" + "".join(_FORMATS[kind] for kind, _ in changing))
        self.offsets = {name: at for name, (at, _) in self.maps.items()}
        self.fixed: list[tuple[str, str]] = []
        at = self.start
        for kind, name in plain:
            size = struct.calcsize(_FORMATS[kind])
            at = -(-at // size) * size if (kind, name) not in changing else at
            self.offsets[name] = at
            if (kind, name) not in changing:
                self.fixed.append((kind, name))
            at += size
        self.size = at
        self.tables = [[name for _, name in kernel.parameters] for kernel in kernels]


class Frame:
    """Memory for the parameters of one call at a time."""

    def __init__(self, shape: Shape, fixed: Mapping[str, int]) -> None:
        self.shape = shape
        self._held = ctypes.create_string_buffer(shape.size + _ALIGNMENT)
        base = ctypes.addressof(self._held)
        self._base = -(-base // _ALIGNMENT) * _ALIGNMENT
        self._view = memoryview(self._held).cast("B")[self._base - base :]
        for kind, name in shape.fixed:
            struct.pack_into("=" + _FORMATS[kind], self._view, shape.offsets[name], fixed[bare(name)])
        self._tables = [
            (ctypes.c_void_p * len(names))(*(self._base + shape.offsets[name] for name in names))
            for names in shape.tables
        ]
        self.tables = [ctypes.addressof(table) for table in self._tables]
        """Of each kernel, the address of the array of its parameters' addresses."""
        self._addresses: dict[int, int] = {}

    def write(self, values: Sequence[float]) -> None:
        """The values of one call: addresses and scalars, in the order that `Shape` was told."""
        shape = self.shape
        shape.changing.pack_into(self._view, shape.start, *[values[source] for source in shape.sources])
        for source, at, tensor in shape.mapped:
            address = int(values[source])
            known = self._addresses.get(at)
            if known == address:
                continue
            place = self._base + at
            if known is None:
                driver.encode_tensor_map(place, tensor.dtype, address, tensor.sizes, tensor.strides, tensor.box)
            else:
                driver.replace_address(place, address)
            self._addresses[at] = address


def bare(name: str) -> str:
    """A parameter's name without what says that TVM converted it."""
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name
