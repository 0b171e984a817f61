"""Which kernels an artifact holds, and how they are linked."""

from __future__ import annotations

import ctypes
import importlib.util
import struct
from pathlib import Path
from typing import Any

import pytest

from attncc import schedules
from attncc.export import link, support
from attncc.export.kernels import Call, Wanted, compile_library, wanted
from attncc.runtime import build, native
from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import detect, parse

SPEC = AttentionSpec(dtype="float32", head_dim=16, value_dim=16)


def families(call: Call) -> set[str]:
    """Names of the families wanted for a call."""
    return {kernel.family.name for kernel in wanted([call, call], detect())}


def test_open_sizes_want_every_family_that_may_be_selected() -> None:
    """And fixed ones only what they select, with any number of threads; the general family serves open ones last."""
    able = {f.name for f in schedules.families(detect()) if f.declines(SPEC, detect()) is None}
    assert families(Call(SPEC, None, None, None, None)) == able
    assert families(Call(SPEC, 1, 4, 1, None)) == {"cpu.decode", "cpu.fallback"}
    fixed = families(Call(SPEC, 2, 4, 512, 512))
    threads = range(1, support.MOST_THREADS + 1)
    assert fixed == {schedules.select(SPEC, Problem(2, 4, 512, 512, n), detect()).name for n in threads}


def test_kernels_have_names_of_their_own() -> None:
    """Two specs in one library, the same spec with other decisions."""
    other = AttentionSpec(dtype="float32", head_dim=8, value_dim=16)
    calls = [Call(spec, None, None, None, None) for spec in (SPEC, other)]
    kernels = wanted(calls, detect())
    assert len({kernel.symbol for kernel in kernels}) == len(kernels)


def test_without_a_linker_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only building needs one."""
    monkeypatch.setattr(link.shutil, "which", lambda name: None)
    monkeypatch.setattr(link.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(link.NoLinker, match=r"binutils.*lld.*pip install 'attncc\[cross\]'"):
        link.link([], tmp_path / "x.so", detect())


def test_linkers_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that fails is named with what it said."""
    tried = [link.Linker("first", ("false",)), link.Linker("second", ("no/such/linker",))]
    monkeypatch.setattr(link, "_linkers", lambda target: iter(tried))
    with pytest.raises(link.NoLinker, match=r"Tried first: .*; second: .*No such file"):
        link.link([], tmp_path / "x.so", detect())


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="pip install 'attncc[cross]' brings a linker")
def test_a_library_for_another_architecture(tmp_path: Path) -> None:
    """Kernels for a machine that is not this one, up to the shared library that its loader takes; ELF's number of
    AArch64 is 183."""
    target = parse("neoverse-v1")
    family = schedules.select(SPEC, Problem(1, 2, 1, 100, 2), target)
    kernel = Wanted(SPEC, family, family.decisions(SPEC, target), "")
    linker = compile_library([kernel], target, tmp_path / "kernels.so")
    library = (tmp_path / "kernels.so").read_bytes()
    assert linker == "zig" or "aarch64" in linker or "lld" in linker
    assert (library[:4], *struct.unpack("<HH", library[16:20])) == (b"\x7fELF", 3, 183)
    assert kernel.symbol.encode() in library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The support code alone, as a library."""
    folder = tmp_path_factory.mktemp("support")
    family = schedules.families(detect())[-1]
    kernel = build.llvm(SPEC, detect(), family, family.decisions(SPEC, detect())).decode()
    native.write_object(support.text(kernel), folder / "support.o")
    link.link([folder / "support.o"], folder / "support.so", detect())
    return native.load_library((folder / "support.so").read_bytes()), ctypes.CDLL(str(folder / "support.so"))


BODY = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


def in_task(library: Any, body: Any) -> int:
    """Run `body(allocate, release)` in a parallel loop of one thread."""
    _, loaded = library
    pointer = ctypes.c_void_p
    integers = (ctypes.c_int, ctypes.c_int)
    allocate = ctypes.CFUNCTYPE(pointer, *integers, ctypes.c_uint64, *integers)(
        pointer.in_dll(loaded, "__TVMBackendAllocWorkspace").value
    )
    release = ctypes.CFUNCTYPE(ctypes.c_int, *integers, pointer)(
        pointer.in_dll(loaded, "__TVMBackendFreeWorkspace").value
    )
    launch = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, ctypes.c_int)(
        pointer.in_dll(loaded, "__TVMBackendParallelLaunch").value
    )
    run = BODY(lambda task, env, data: body(lambda n: allocate(1, 0, n, 2, 32), lambda p: release(1, 0, p)))
    return launch(ctypes.cast(run, pointer), None, 0)


def test_scratch_memory_is_a_stack_that_any_order_of_releases_leaves_right(library: Any) -> None:
    """Blocks are aligned and apart from each other; the last one is taken back at once, and one that another still
    follows is not handed out again. What does not fit is malloc's."""

    def body(allocate: Any, release: Any) -> int:
        first, second = allocate(100), allocate(1)
        assert first % 128 == second % 128 == 0 and second - first >= 228
        release(second)
        assert allocate(5) == second
        release(first)  # not the last one: stays until the task ends
        third = allocate(100)
        assert third > second
        for block, size in ((first, 100), (second, 5), (third, 100)):
            ctypes.memset(block, 7, size)
        big = allocate(64 << 20)
        assert abs(big - first) > 1 << 20 and big % 128 == 0
        ctypes.memset(big, 7, 64 << 20)
        assert (release(big), release(third), release(second)) == (0, 0, 0)
        assert allocate(1) == second
        return 3

    assert in_task(library, body) == 3


def test_scratch_memory_outside_of_a_task_and_of_a_task_within_a_task(library: Any) -> None:
    """A task within a task has an arena of its own, and leaves the outer one as it was."""

    def outer(allocate: Any, release: Any) -> int:
        block = allocate(10)
        inner = []
        assert in_task(library, lambda a, r: inner.append(a(10)) or 0) == 0
        assert inner[0] != block
        release(block)
        assert allocate(10) == block
        return 0

    assert in_task(library, outer) == 0


def test_launchers_run_every_task_once_and_give_the_bodys_error(library: Any) -> None:
    """In torch's OpenMP, for several numbers of threads."""
    from attncc.runtime import launcher

    module, _ = library
    addresses = launcher.openmp()
    if addresses is None:
        pytest.skip("torch brings no OpenMP with GNU's entry points")
    module["attncc_openmp"](*(addresses[name] for name in support.OPENMP))
    for threads in (1, 2, 5):
        seen: list[int] = []

        def body(task: int, env: int, data: Any, seen: list[int] = seen) -> int:
            seen.append(task)
            return 4 if task == 0 else 0

        run = BODY(body)
        launch = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int)(
            int(module["attncc_launcher"](threads))
        )
        assert launch(ctypes.cast(run, ctypes.c_void_p), None, 0) == 4
        assert sorted(seen) == list(range(threads))
