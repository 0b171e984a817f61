"""An emulated GPU in the place of the driver and the compiler that `attncc.runtime.cuda` talks to."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from attncc.runtime.cuda import build, code, devices, driver, nvrtc
from attncc.runtime.cuda.code import generate
from attncc.runtime.cuda.devices import TRIPLE
from attncc.schedules.cuda.families import CudaFamily
from attncc.spec import AttentionSpec
from attncc.target import Target
from cuda_emulation.translate import translate

DEVICE = -1
"""What torch calls the device of CPU tensors."""
_SOURCES = Path(__file__).with_name("device")
_OPTIONS = ("-w", "-Wno-psabi", "-std=c++17", "-fPIC", "-U_FORTIFY_SOURCE")
_INSTRUMENTED = ("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0")
"""Every load and store calls a function of `device/accesses.cpp`. The sanitizer's own library is not linked."""
_RANK = 4
_WIDTH = 2
"""Bytes of an element that TMA copies."""
_MAP = struct.Struct("<Q5Q4Q5II")
"""CUtensorMap in `device/emulated.h`."""
_one_at_a_time = threading.Lock()


class EmulationError(AssertionError):
    """A race, a deadlock or a misuse of an instruction, in words."""


def cuda_include() -> Path | None:
    """CUDA's headers, or None where it is not installed."""
    nvcc = shutil.which("nvcc")
    places = [Path(nvcc).resolve().parent.parent] if nvcc else []
    places += sorted(Path("/usr/local").glob("cuda*"))
    return next((place / "include" for place in places if (place / "include" / "cuda_fp16.h").exists()), None)


def available() -> bool:
    """Whether kernels can be compiled here."""
    return cuda_include() is not None and shutil.which("g++") is not None


@contextmanager
def gpu(
    folder: Path, processors: int = 4, arch: str = "sm_80", edit: Callable[[str], str] | None = None
) -> Iterator[Target]:
    """CPU tensors are those of an emulated GPU, torch's device -1, and memory that is not written is NaN.

    Its machine code is the name of a library in `folder`. `edit` may change the CUDA code before it is compiled.
    """
    target = Target("cuda", arch, TRIPLE, frozenset(), processors, 0, 0, 0)

    def compile_source(source: bytes, arch: str) -> bytes:
        text = source.decode()
        return _build(edit(text) if edit else text, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNCC_CACHE_DIR", str(folder / "cache"))
        patch.setattr(devices, "target", lambda device: target)
        patch.setattr(code, "generate", _generate)
        patch.setattr(nvrtc, "compile_source", compile_source)
        patch.setattr(driver, "Module", _Module)
        patch.setattr(driver, "launch", _launch)
        patch.setattr(driver, "encode_tensor_map", _encode_tensor_map)
        patch.setattr(
            driver, "replace_address", lambda place, address: ctypes.memmove(place, struct.pack("<Q", address), 8)
        )
        patch.setattr(driver, "current_device", lambda: DEVICE)
        patch.setattr(driver, "current_stream", lambda device: 0)
        torch.use_deterministic_algorithms(True)
        build.forget()
        try:
            yield target
        finally:
            torch.use_deterministic_algorithms(False)
            build.forget()


def _generate(spec: AttentionSpec, target: Target, family: CudaFamily, decisions: Mapping[str, int]) -> code.Code:
    """As `code.generate`, once a process: a test may run the same kernel with several changes."""
    key = (spec.json, target.mcpu, family.name, *sorted(decisions.items()))
    if key not in _generated:
        _generated[key] = generate(spec, target, family, decisions)
    return _generated[key]


_generated: dict[tuple[object, ...], code.Code] = {}


class _Module:
    """Stands for `driver.Module`."""

    def __init__(self, library: bytes, device: int) -> None:
        self.library = ctypes.CDLL(library.decode())

    def function(self, symbol: str, shared: int) -> int:
        return ctypes.cast(getattr(self.library, f"launch_{symbol}"), ctypes.c_void_p).value or 0


def _launch(function: int, grid: tuple[int, int, int], threads: int, shared: int, stream: int, parameters: int) -> int:
    kind = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p, *[ctypes.c_int] * 5)
    with _one_at_a_time:
        message = kind(function)(parameters, *grid, threads, shared)
    if message is not None:
        raise EmulationError(message.decode())
    return 0


def _encode_tensor_map(
    place: int, dtype: str, address: int, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]
) -> None:
    """As `driver.encode_tensor_map`, with the driver's demands."""
    assert dtype in ("float16", "bfloat16") and len(sizes) == _RANK
    assert address % 16 == 0 and all(stride % 16 == 0 and 0 < stride < 2**40 for stride in strides)
    assert all(0 < size <= 2**32 for size in sizes) and all(0 < size <= 256 for size in box)
    assert box[0] * _WIDTH <= 128, "a row of the box is wider than the swizzle"
    ctypes.memmove(place, _MAP.pack(address, *sizes, 1, *strides, 0, *box, 1, _RANK), _MAP.size)


def _build(source: str, folder: Path) -> bytes:
    """Compile the device code with the instructions replaced."""
    text = translate(source)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.cpp"
    path.write_text(text)
    code, library = path.with_suffix(".o"), path.with_suffix(".so")
    include = (f"-I{_SOURCES}", f"-I{cuda_include()}")
    subprocess.run(["g++", "-O1", *_OPTIONS, *_INSTRUMENTED, *include, "-c", str(path), "-o", str(code)], check=True)
    emulation = _emulation()
    subprocess.run(
        ["g++", "-shared", str(code), str(emulation), f"-Wl,-rpath,{emulation.parent}", "-o", str(library)], check=True
    )
    return str(library).encode()


@functools.cache
def _emulation() -> Path:
    """The library that stands for the GPU, compiled once a process."""
    folder = tempfile.TemporaryDirectory(prefix="attncc-emulation-")
    _held.append(folder)
    library = Path(folder.name, "libemulation.so")
    command = ["g++", "-O2", *_OPTIONS, "-shared", str(_SOURCES / "emulation.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


_held: list[tempfile.TemporaryDirectory[str]] = []
"""Folders that last as long as the process."""
