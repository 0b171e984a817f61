"""What compiled kernels need of a runtime, as LLVM IR that is linked with them: TVM's own is not there to give it.

*Threads.* A kernel is given a launcher, `int launch(body, data, tasks)`. The library has one for each number of threads
up to `MOST_THREADS`; they call `GOMP_parallel` of the OpenMP that torch has loaded, whose address the loader hands in
(`attncc_openmp`). `attncc_launcher(n)` gives the address of the one for n threads; that for one calls the body itself.

*Scratch memory.* TVM's kernels ask for theirs, some twenty small blocks a tile, through the pointers
`__TVMBackendAllocWorkspace` and `__TVMBackendFreeWorkspace`. Here they get pieces of an arena that lies on the stack of
the thread for as long as its task runs: nothing to free when a thread ends, and nothing is lost where a task fails. A
block lies behind a header that says where it ends, so that the last one is taken back at once (kernels nest them);
one that does not fit is malloc's.
"""

from __future__ import annotations

import re
from string import Template

MOST_THREADS = 256
"""Threads of one parallel loop; more are not started."""
_ARENA = 256 << 10
"""Bytes of a thread's arena: what the tiles of the usual head sizes take, and half of the smallest stacks in use."""
_ALIGN = 128
"""Of blocks and headers, in bytes: two cache lines, and more than any vector."""
OPENMP = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
"""Arguments of `attncc_openmp`, in order."""

# TVM's types: `int body(int task, env* {barrier, number of tasks}, void* data)`; arguments and results of functions
# that are called from Python are (type index, padding, 64-bit value), where type 0 is None and 1 an integer.
_TEXT = Template("""
%env = type { ptr, i32 }
%job = type { ptr, ptr, i32 }
%arena = type { i64, i64, i64 }

@attncc_arena = internal thread_local global %arena zeroinitializer
$addresses
@__TVMBackendParallelLaunch = global ptr @attncc_launch_1
@__TVMBackendAllocWorkspace = global ptr @attncc_allocate
@__TVMBackendFreeWorkspace = global ptr @attncc_release

declare i32 @posix_memalign(ptr, i64, i64)
declare void @free(ptr)
declare ptr @llvm.threadlocal.address.p0(ptr)

define internal ptr @attncc_allocate(i32 %device, i32 %id, i64 %bytes, i32 %code, i32 %bits) {
  %made = alloca ptr
  %arena = call ptr @llvm.threadlocal.address.p0(ptr @attncc_arena)
  %next.at = getelementptr %arena, ptr %arena, i32 0, i32 1
  %next = load i64, ptr %next.at
  %end.at = getelementptr %arena, ptr %arena, i32 0, i32 2
  %end = load i64, ptr %end.at
  %more = add i64 %bytes, $padding
  %size = and i64 %more, -$align
  %left = sub i64 %end, %next
  %fits = icmp ule i64 %size, %left
  br i1 %fits, label %stack, label %heap
stack:
  %top = add i64 %next, %size
  %header = inttoptr i64 %next to ptr
  store i64 %top, ptr %header
  store i64 %top, ptr %next.at
  %first = add i64 %next, $align
  %block = inttoptr i64 %first to ptr
  ret ptr %block
heap:
  store ptr null, ptr %made
  %code.of = call i32 @posix_memalign(ptr %made, i64 $align, i64 %bytes)
  %given = load ptr, ptr %made
  ret ptr %given
}

define internal i32 @attncc_release(i32 %device, i32 %id, ptr %block) {
  %arena = call ptr @llvm.threadlocal.address.p0(ptr @attncc_arena)
  %next.at = getelementptr %arena, ptr %arena, i32 0, i32 1
  %end.at = getelementptr %arena, ptr %arena, i32 0, i32 2
  %start = load i64, ptr %arena
  %end = load i64, ptr %end.at
  %first = ptrtoint ptr %block to i64
  %offset = sub i64 %first, %start
  %span = sub i64 %end, %start
  %inside = icmp ult i64 %offset, %span
  br i1 %inside, label %stack, label %heap
stack:
  %header.at = sub i64 %first, $align
  %header = inttoptr i64 %header.at to ptr
  %top = load i64, ptr %header
  %next = load i64, ptr %next.at
  %last = icmp eq i64 %top, %next
  %kept = select i1 %last, i64 %header.at, i64 %next
  store i64 %kept, ptr %next.at
  ret i32 0
heap:
  call void @free(ptr %block)
  ret i32 0
}

define internal i32 @attncc_task(ptr %body, ptr %data, i32 %task, i32 %tasks) {
  %memory = alloca [$arena_size x i8], align $align
  %env = alloca %env
  store ptr null, ptr %env
  %tasks.at = getelementptr %env, ptr %env, i32 0, i32 1
  store i32 %tasks, ptr %tasks.at
  %arena = call ptr @llvm.threadlocal.address.p0(ptr @attncc_arena)
  %outer = load %arena, ptr %arena
  %start = ptrtoint ptr %memory to i64
  store i64 %start, ptr %arena
  %next.at = getelementptr %arena, ptr %arena, i32 0, i32 1
  store i64 %start, ptr %next.at
  %end = add i64 %start, $arena_size
  %end.at = getelementptr %arena, ptr %arena, i32 0, i32 2
  store i64 %end, ptr %end.at
  %code = call i32 %body(i32 %task, ptr %env, ptr %data)
  store %arena %outer, ptr %arena
  ret i32 %code
}

define internal void @attncc_member(ptr %job) {
  %body = load ptr, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  %data = load ptr, ptr %data.at
  %number = load ptr, ptr @attncc_omp_get_num_threads
  %tasks = call i32 %number()
  %mine = load ptr, ptr @attncc_omp_get_thread_num
  %task = call i32 %mine()
  %code = call i32 @attncc_task(ptr %body, ptr %data, i32 %task, i32 %tasks)
  %code.at = getelementptr %job, ptr %job, i32 0, i32 2
  %old = atomicrmw or ptr %code.at, i32 %code seq_cst
  ret void
}

define internal i32 @attncc_parallel(ptr %body, ptr %data, i32 %threads) {
  %job = alloca %job
  store ptr %body, ptr %job
  %data.at = getelementptr %job, ptr %job, i32 0, i32 1
  store ptr %data, ptr %data.at
  %code.at = getelementptr %job, ptr %job, i32 0, i32 2
  store i32 0, ptr %code.at
  %start = load ptr, ptr @attncc_GOMP_parallel
  call void %start(ptr @attncc_member, ptr %job, i32 %threads, i32 0)
  %code = load i32, ptr %code.at
  ret i32 %code
}

define internal i32 @attncc_launch_1(ptr %body, ptr %data, i32 %tasks) {
  %code = call i32 @attncc_task(ptr %body, ptr %data, i32 0, i32 1)
  ret i32 %code
}
$launchers
@attncc_launchers = internal constant [$most x ptr] [$table]

define i32 @__tvm_ffi_attncc_launcher(ptr %self, ptr %args, i32 %count, ptr %result) {
  %threads.at = getelementptr i8, ptr %args, i64 8
  %threads = load i64, ptr %threads.at
  %index = sub i64 %threads, 1
  %launcher.at = getelementptr [$most x ptr], ptr @attncc_launchers, i64 0, i64 %index
  %launcher = load ptr, ptr %launcher.at
  %address = ptrtoint ptr %launcher to i64
  store i64 1, ptr %result
  %value.at = getelementptr i8, ptr %result, i64 8
  store i64 %address, ptr %value.at
  ret i32 0
}

define i32 @__tvm_ffi_attncc_openmp(ptr %self, ptr %args, i32 %count, ptr %result) {
$set_addresses
  store i64 0, ptr %result
  ret i32 0
}

!llvm.module.flags = !{!0}
!0 = !{i32 2, !"tvm_target", !"$target"}
""")
_LAUNCHER = """
define internal i32 @attncc_launch_{n}(ptr %body, ptr %data, i32 %tasks) {{
  %code = tail call i32 @attncc_parallel(ptr %body, ptr %data, i32 {n})
  ret i32 %code
}}
"""
_SET = """  %at.{n} = getelementptr i8, ptr %args, i64 {offset}
  %value.{n} = load i64, ptr %at.{n}
  %address.{n} = inttoptr i64 %value.{n} to ptr
  store ptr %address.{n}, ptr @attncc_{name}"""


def text(kernel: str) -> str:
    """The LLVM IR, for the target of `kernel`, which is the LLVM IR of any kernel that it is to be linked with."""
    header = "\n".join(re.findall(r"^target .*$", kernel, re.MULTILINE))
    target = re.search(r'!"tvm_target", !"(.*?)"\}', kernel)
    if target is None:
        raise ValueError("the LLVM IR of a kernel does not name its target")
    numbers = range(1, MOST_THREADS + 1)
    return header + _TEXT.substitute(
        addresses="\n".join(f"@attncc_{name} = internal global ptr null" for name in OPENMP),
        set_addresses="\n".join(_SET.format(n=n, offset=16 * n + 8, name=name) for n, name in enumerate(OPENMP)),
        launchers="".join(_LAUNCHER.format(n=n) for n in numbers[1:]),
        table=", ".join(f"ptr @attncc_launch_{n}" for n in numbers),
        most=MOST_THREADS,
        arena_size=_ARENA,
        align=_ALIGN,
        padding=2 * _ALIGN - 1,
        target=target[1],
    )
