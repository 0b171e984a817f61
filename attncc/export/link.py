"""From objects to one shared library, by whatever linker this machine has. Only building an artifact needs one."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from attncc.target import Target

_SECONDS = 120
_PLAIN = ("-shared", "-Bsymbolic", "-s")
"""For linkers themselves: a library that finds its own symbols first, without debug information."""
_DRIVER = ("-shared", "-nostdlib", "-Wl,-Bsymbolic", "-s")
"""The same for compilers that call one. What is linked needs nothing but the libraries that torch has loaded."""


class Linker(NamedTuple):
    """A way to link: what people call it, and the command, options included."""

    name: str
    command: tuple[str, ...]


class NoLinker(RuntimeError):
    """No linker for a target was found, or none that could link; the message says what to install."""


def link(objects: Sequence[Path], library: Path, target: Target) -> str:
    """Link `objects`, made for `target`, into the shared library `library`; returns the name of the linker.

    Raises NoLinker.
    """
    if "linux" not in target.triple:
        raise NoLinker(f"attncc.export: artifacts are for Linux, and the target is {target.triple}")
    refused = []
    for name, command in _linkers(target):
        arguments = [*command, "-o", str(library), *map(str, objects)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, timeout=_SECONDS, errors="replace")
        except (OSError, subprocess.TimeoutExpired) as error:
            refused.append(f"{name}: {error}")
            continue
        if done.returncode == 0 and library.exists():
            return name
        refused.append(f"{name}: {' '.join((done.stderr or done.stdout).split())[-300:]}")
    tried = f" Tried {'; '.join(refused)}." if refused else ""
    raise NoLinker(
        f"attncc.export: no linker for {target.arch} was found, which building (not loading) an artifact needs.{tried} "
        f"Install one: binutils{_package(target)}, LLVM's lld, or pip install 'attncc[cross]', whose zig links for all"
    )


def _linkers(target: Target) -> Iterator[Linker]:
    """What to try: linkers for one architecture only where it is the target's; zig, which has all, last."""
    prefix = f"{target.arch}-linux-gnu-"
    native = _machine() == target.arch
    candidates = [(f"{prefix}ld", _PLAIN), ("ld.lld", _PLAIN), (f"{prefix}gcc", _DRIVER)]
    if native:
        candidates = [("ld", _PLAIN), *candidates, ("cc", _DRIVER), ("gcc", _DRIVER), ("clang", _DRIVER)]
    for name, options in candidates:
        found = shutil.which(name)
        if found is not None:
            yield Linker(name, (found, *options))
    options = ("cc", "-target", f"{target.arch}-linux-gnu", *_DRIVER)
    zig = shutil.which("zig")
    if zig is not None:
        yield Linker("zig", (zig, *options))
    elif importlib.util.find_spec("ziglang") is not None:
        yield Linker("zig", (sys.executable, "-m", "ziglang", *options))


def _machine() -> str:
    """This machine's architecture under LLVM's name for it."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())


def _package(target: Target) -> str:
    """The end of the package's name of a cross linker in Debian's and most other collections."""
    return "" if _machine() == target.arch else f"-{target.arch.replace('_', '-')}-linux-gnu"
