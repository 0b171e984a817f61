"""TVM's native libraries, without TVM's Python package.

A process whose kernels are all in the cache needs TVM's runtime and its LLVM code generator, both of which load in some
hundredths of a second; `import tvm` takes seconds. Everything here goes through `tvm_ffi` alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any


@cache
def load_libraries() -> None:
    """Load TVM's runtime and compiler libraries into this process, once. Raises RuntimeError where they are missing."""
    if "tvm" in sys.modules:
        return
    try:
        import tvm_ffi.libinfo

        spec = importlib.util.find_spec("tvm")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("No module named 'tvm'")
        folder = Path(spec.origin).parent / "lib"
        # The same two loads, in the same order and with the same visibility, as TVM's own package does on import.
        for library, visibility in (("tvm_runtime", "RTLD_GLOBAL"), ("tvm_compiler", "RTLD_LOCAL")):
            handle = tvm_ffi.libinfo.load_lib_ctypes("tvm", library, visibility, extra_lib_paths=[folder])
            _handles.append(handle)
    except (ImportError, OSError, RuntimeError, TypeError) as first:
        try:
            import tvm  # noqa: F401  (a wheel laid out in another way: let it find its libraries itself)
        except (ImportError, OSError, RuntimeError) as error:
            raise RuntimeError(f"attncc needs apache-tvm with LLVM, which does not load here: {error}") from first


_handles: list[object] = []
_serial = itertools.count()


def runtime_library() -> ctypes.CDLL:
    """TVM's runtime library. Raises RuntimeError or OSError where it does not load."""
    load_libraries()
    import tvm_ffi.libinfo

    spec = importlib.util.find_spec("tvm")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    library: ctypes.CDLL = tvm_ffi.libinfo.load_lib_ctypes(
        "tvm", "tvm_runtime", "RTLD_GLOBAL", extra_lib_paths=[folder]
    )
    return library


def function(name: str) -> Callable[..., Any]:
    """The function that TVM registers under `name`. Raises RuntimeError where TVM does not load or has no such one."""
    load_libraries()
    import tvm_ffi

    try:
        found: Callable[..., Any] = tvm_ffi.get_global_func(name)
    except (ValueError, RuntimeError) as error:
        raise RuntimeError(f"this build of TVM has no function {name!r} (was it built with LLVM?)") from error
    return found


def load_llvm(text: bytes, entry: str) -> tuple[Any, Callable[..., Any]]:
    """The module of LLVM IR `text`, compiled in this process, and its function `entry`, which needs the module alive.

    Raises RuntimeError where LLVM refuses the text or there is no such function.
    """
    loader = function("ffi.Module.load_from_file.ll")
    with _as_file(text, "attncc.ll") as path:
        return _checked(loader, path, entry)


@contextlib.contextmanager
def _as_file(data: bytes, name: str) -> Iterator[str]:
    """The path of a file that holds `data`: an anonymous memory file where the system has such, so that what is loaded
    is exactly `data`, whatever happens to files on disk."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create(name)
        try:
            with open(handle, "wb", closefd=False) as file:
                file.write(data)
            # Never the same text twice: glibc takes a library for one that it has loaded already from such a path.
            spelling = f"{next(_serial):b}".replace("0", "/").replace("1", "./")
            yield f"/proc/self/fd/{spelling}{handle}"
        finally:
            os.close(handle)
    else:
        with tempfile.TemporaryDirectory(prefix="attncc-") as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            yield str(path)


def write_object(text: str, path: Path) -> None:
    """Compile LLVM IR `text`, for the target that it names, to the object file `path`.

    Raises RuntimeError where LLVM refuses the text.
    """
    source = path.with_suffix(".ll")
    source.write_text(text)
    try:
        function("ffi.Module.load_from_file.ll")(str(source), "ll").write_to_file(str(path), "o")
    except Exception as error:  # TVM raises whatever class its C++ side names
        raise RuntimeError(f"LLVM does not compile this module: {error}") from error


def load_library(library: bytes) -> Any:
    """The module of a shared library that holds kernels; needs tvm_ffi alone.

    Raises RuntimeError or OSError where the system does not load it.
    """
    import tvm_ffi

    load = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")
    with _as_file(library, "attncc.so") as path:
        return load(path, "so")


def _checked(loader: Callable[..., Any], path: str, entry: str) -> tuple[Any, Callable[..., Any]]:
    try:
        module = loader(path, "ll")
        return module, module[entry]
    except Exception as error:  # TVM raises whatever class its C++ side names
        raise RuntimeError(f"LLVM does not take this module: {error}") from error
