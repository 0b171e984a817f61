"""Parallel loops of TVM kernels on the OpenMP pool that torch itself runs on.

A TVM kernel starts a parallel loop by calling a launcher, `int launch(body, data, tasks)`. TVM's own launcher has a
pool of its own, whose spinning workers compete with torch's for the cores. The launchers here are some lines of LLVM IR
that call `GOMP_parallel` in the very library that torch has loaded (GNU's libgomp, or LLVM's and Intel's runtimes,
which offer the same entry). No C compiler is needed.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from functools import cache
from pathlib import Path
from typing import Any

_SYMBOLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
_LIBRARIES = ("lib/libtorch_cpu.so", "lib/libtorch_cpu.dylib")

# TVM's `FTVMParallelLambda` is `int body(int task, TVMParallelGroupEnv* env, void* data)`, where env is a barrier
# handle (unused by these kernels) and the number of tasks that really run. A body's error code reaches the caller.
_TYPES = """
%env = type { ptr, i32 }
%job = type { ptr, ptr, i32 }
"""
_SERIAL = """
define i32 @attncc_launch(ptr %body, ptr %data, i32 %tasks) {
  %env = alloca %env
  store %env { ptr null, i32 1 }, ptr %env
  %code = call i32 %body(i32 0, ptr %env, ptr %data)
  ret i32 %code
}
"""
_PARALLEL = """
define internal void @attncc_member(ptr %job) {
  %body = load ptr, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  %data = load ptr, ptr %data.at
  %tasks = call i32 inttoptr (i64 OMP_GET_NUM_THREADS to ptr)()
  %task = call i32 inttoptr (i64 OMP_GET_THREAD_NUM to ptr)()
  %env = alloca %env
  store ptr null, ptr %env
  %tasks.at = getelementptr %env, ptr %env, i32 0, i32 1
  store i32 %tasks, ptr %tasks.at
  %code = call i32 %body(i32 %task, ptr %env, ptr %data)
  %code.at = getelementptr %job, ptr %job, i32 0, i32 2
  %old = atomicrmw or ptr %code.at, i32 %code seq_cst
  ret void
}
define i32 @attncc_launch(ptr %body, ptr %data, i32 %tasks) {
  %job = alloca %job
  store ptr %body, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  store ptr %data, ptr %data.at
  %code.at = getelementptr %job, ptr %job, i32 0, i32 2
  store i32 0, ptr %code.at
  call void inttoptr (i64 GOMP_PARALLEL to ptr)(ptr @attncc_member, ptr %job, i32 THREADS, i32 0)
  %code = load i32, ptr %code.at
  ret i32 %code
}
"""
# How TVM calls into a module: arguments and result are (type index, padding, 64-bit value); type 1 is an integer.
_ADDRESS = """
define i32 @__tvm_ffi_address(ptr %self, ptr %args, i32 %count, ptr %result) {
  store i64 1, ptr %result
  %value.at = getelementptr i8, ptr %result, i64 8
  %value = ptrtoint ptr @attncc_launch to i64
  store i64 %value, ptr %value.at
  ret i32 0
}
!llvm.module.flags = !{!0}
!0 = !{i32 4, !"tvm_target", !"{\\22kind\\22: \\22llvm\\22}"}
"""

_lock = threading.Lock()
_launchers: dict[int, int] = {}
_modules: list[Any] = []  # an unloaded module would leave its address dangling
_forked = False


def address(threads: int, llvm_ir: str) -> int:
    """The address of a launcher for `threads` threads, to be passed to kernels; TVM's own where there is no OpenMP.

    `llvm_ir` is the text of any module compiled for this host, whose data layout and triple the launcher must state.
    One thread, or a forked child (where an OpenMP runtime that its parent has used hangs), gets a launcher that runs
    the body in the calling thread.
    """
    threads = usable_threads(threads)
    found = _launchers.get(threads)
    return _build(threads, llvm_ir) if found is None else found


def usable_threads(threads: int) -> int:
    """How many threads a parallel loop started here really gets when `threads` are asked for."""
    return 1 if _forked else max(1, threads)


def describe() -> str:
    """Where parallel loops run, in words, for `attncc info`."""
    if _forked:
        return "serial (forked child)"
    return "torch's OpenMP pool" if openmp() is not None else "TVM's thread pool (torch's OpenMP was not found)"


def after_clean_fork() -> None:
    """Say in a forked child that its parent never ran a parallel loop: OpenMP starts here as in a fresh process."""
    global _forked
    _forked = False


def _build(threads: int, llvm_ir: str) -> int:
    header = "\n".join(re.findall(r"^target .*$", llvm_ir, re.MULTILINE))
    with _lock:
        # The serial one is always made first, so that a child forked later has it without compiling anything.
        for count in {1: None, threads: None}:
            if count not in _launchers:
                _launchers[count] = _compile(count, header)
        return _launchers[threads]


def _compile(threads: int, header: str) -> int:
    from attncc.runtime import native

    symbols = openmp()
    if threads == 1:
        text = header + _TYPES + _SERIAL + _ADDRESS
    elif symbols is None:
        return _tvm_pool(threads)
    else:
        text = header + _TYPES + _PARALLEL.replace("THREADS,", f"{threads},") + _ADDRESS
        for name, at in symbols.items():
            text = text.replace(f"i64 {name.upper()} ", f"i64 {at} ")
    module, give_address = native.load_llvm(text.encode(), "address")
    _modules.append(module)
    return int(give_address())


def _tvm_pool(threads: int) -> int:
    """TVM's own launcher, for OpenMP runtimes without GNU's entry points.

    A kernel keeps the last launcher that it was given, so this one is passed by its address as well.
    """
    from attncc.runtime import native

    os.environ.setdefault("TVM_BIND_THREADS", "0")  # read when its pool starts: pinning would hit torch's threads too
    os.environ.setdefault("TVM_NUM_THREADS", str(threads))
    library = native.runtime_library()
    return ctypes.cast(library.TVMBackendParallelLaunch, ctypes.c_void_p).value or 0


@cache
def openmp() -> dict[str, int] | None:
    """Addresses of the OpenMP entry points, looked up through libtorch: the process may hold other runtimes too.

    None where torch has another way to run in parallel.
    """
    import torch

    for name in _LIBRARIES:
        path = Path(torch.__file__).parent / name
        try:
            library = ctypes.CDLL(str(path))
            found = {symbol: ctypes.cast(getattr(library, symbol), ctypes.c_void_p).value for symbol in _SYMBOLS}
        except (OSError, AttributeError):
            continue
        if all(found.values()):
            return {symbol: at for symbol, at in found.items() if at is not None}
    return None


def _after_fork() -> None:
    global _forked, _lock
    _forked = True
    _lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
