"""CUDA C++ to machine code: by the nvrtc that comes with torch, in this process; else by an nvcc on the path."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

OPTIONS = ("-std=c++17", "-ftz=true", "-prec-div=false")
"""Subnormal float32 are 0, division may be off by 2 ulp: both far below the rounding of any result."""
_HEADER = "cuda_bf16.h"


def compile_source(source: bytes, arch: str) -> bytes:
    """The cubin of `source` for `arch` ("sm_90a"). Raises RuntimeError with the compiler's words where there is none,
    or it refuses.
    """
    library = _library()
    if library is not None and include_folder() is not None:
        return _by_nvrtc(library, source, arch)
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise RuntimeError("neither nvrtc (it comes with torch's CUDA builds) with CUDA's headers nor nvcc was found")
    return _by_nvcc(nvcc, source, arch)


@cache
def include_folder() -> Path | None:
    """Where CUDA's headers are: in the packages that torch depends on, or in a toolkit."""
    places = [folder / "include" for folder in _package_folders()]
    places += [folder / "include" for folder in _toolkits()]
    return next((place for place in places if (place / _HEADER).exists()), None)


def _by_nvrtc(library: ctypes.CDLL, source: bytes, arch: str) -> bytes:
    program = ctypes.c_void_p()
    options = [f"--gpu-architecture={arch}", f"--include-path={include_folder()}", *OPTIONS]
    texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _check(library, library.nvrtcCreateProgram(ctypes.byref(program), source, b"attention.cu", 0, None, None))
    try:
        if library.nvrtcCompileProgram(program, len(options), texts):
            raise RuntimeError(f"nvrtc for {arch}: {_text(library, program)}")
        size = ctypes.c_size_t()
        _check(library, library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        cubin = ctypes.create_string_buffer(size.value)
        _check(library, library.nvrtcGetCUBIN(program, cubin))
        return cubin.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(library: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    """The compiler's log: its first errors."""
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value + 1)
    library.nvrtcGetProgramLog(program, log)
    lines = [line for line in log.value.decode(errors="replace").splitlines() if "error" in line]
    return "; ".join(lines[:3]) or "no reason given"


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        raise RuntimeError(f"nvrtc: {library.nvrtcGetErrorString(status).decode()}")


def _by_nvcc(nvcc: str, source: bytes, arch: str) -> bytes:
    number = arch.removeprefix("sm_")
    with tempfile.TemporaryDirectory(prefix="attncc-") as name:
        text, cubin = Path(name, "attention.cu"), Path(name, "attention.cubin")
        text.write_bytes(source)
        command = [nvcc, "-cubin", *OPTIONS, f"-gencode=arch=compute_{number},code=sm_{number}", "-o", str(cubin)]
        done = subprocess.run([*command, str(text)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nvcc for {arch}: {done.stderr.strip()[-500:]}")
        return cubin.read_bytes()


@cache
def _library() -> ctypes.CDLL | None:
    """nvrtc: beside torch, in a toolkit, or wherever the loader finds it."""
    places = [path for folder in _package_folders() for path in sorted((folder / "lib").glob("libnvrtc.so*"))]
    places += [path for folder in _toolkits() for path in sorted((folder / "lib64").glob("libnvrtc.so"))]
    for name in [*map(str, places), "libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]:
        try:
            # nvrtc opens its built-ins by name alone, which finds them only where they are loaded already.
            for builtins in sorted(Path(name).parent.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(builtins))
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    return None


def _package_folders() -> list[Path]:
    """Folders of NVIDIA's Python packages, which torch's CUDA builds depend on."""
    import torch

    packages = Path(torch.__file__).parent.parent / "nvidia"
    return [folder for folder in sorted(packages.glob("*"), reverse=True) if folder.is_dir()]


def _toolkits() -> list[Path]:
    given = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [*given, Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
