"""Which kernels a program needs for all the sizes that it may be called with, and one library made of them."""

from __future__ import annotations

import hashlib
import itertools
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attncc import schedules
from attncc.export import support, tuned
from attncc.export.archive import place
from attncc.export.link import link
from attncc.runtime import build, native
from attncc.runtime.stats import DEFAULT
from attncc.schedules import Family, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

Size = int | None
"""A size of an attention; None where it may change from call to call."""
_SAMPLES = tuple(2**n for n in range(17))
_FEW_SAMPLES = (1, 8, 64, 512)


@dataclass(frozen=True)
class Call:
    """An attention that a program calls, with the sizes that it may have."""

    spec: AttentionSpec
    batch: Size
    heads: Size
    q_len: Size
    kv_len: Size


@dataclass(frozen=True)
class Wanted:
    """A kernel of an artifact."""

    spec: AttentionSpec
    family: Family
    decisions: dict[str, int]
    source: str
    """Where the decisions come from, in words."""
    places: tuple[str, ...] | None = None
    """Where tuning chose this kernel: for sizes that `archive.place` names. None for a family's analytic decisions."""

    @property
    def symbol(self) -> str:
        """Name of its function in the library."""
        kind = "" if self.places is None else "tuned "
        identity = f"{kind}{self.spec.name} {self.family.name} {sorted(self.decisions.items())}"
        return f"attncc_{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


def wanted(calls: Iterable[Call], target: Target) -> list[Wanted]:
    """The kernels that any of `calls` selects on `target`, with its number of threads whatever it is.

    Raises LookupError, naming the attention, where no family takes it on that target.
    """
    found: dict[str, Wanted] = {}
    for call in dict.fromkeys(calls):
        for family in _families(call, target):
            kernel = Wanted(call.spec, family, dict(family.decisions(call.spec, target)), DEFAULT)
            found.setdefault(kernel.symbol, kernel)
            for bucket, choice in tuned.tuned(call, family, target):
                better = Wanted(call.spec, choice.family, dict(choice.decisions), choice.source, ())
                known = found.setdefault(better.symbol, better)
                places = dict.fromkeys((*(known.places or ()), place(family.name, bucket)))
                found[better.symbol] = replace(known, places=tuple(places))
    order = [family.name for family in schedules.families(target)]
    return sorted(found.values(), key=lambda kernel: (kernel.spec.name, order.index(kernel.family.name)))


def compile_library(
    kernels: Sequence[Wanted], target: Target, path: Path, say: Callable[[str], None] = lambda text: None
) -> str:
    """Compile `kernels` for `target` into the shared library `path`; returns the name of the linker.

    `say` hears of each kernel before it is compiled. Raises NoLinker, and what compiling a kernel raises.
    """
    with tempfile.TemporaryDirectory(prefix="attncc-") as name:
        folder, objects, text = Path(name), [], ""
        for kernel in kernels:
            say(f"compiling {build.kernel_name(kernel.spec, kernel.family)} for {target.mcpu}")
            text = build.llvm(kernel.spec, target, kernel.family, kernel.decisions).decode()
            objects.append(folder / f"{kernel.symbol}.o")
            # Every kernel is called `attention` in its own module.
            native.write_object(re.sub(r"@__tvm_ffi_attention\b", f"@__tvm_ffi_{kernel.symbol}", text), objects[-1])
        objects.append(folder / "support.o")
        native.write_object(support.text(text), objects[-1])
        say(f"linking for {target.mcpu}")
        return link(objects, path, target)


def _families(call: Call, target: Target) -> list[Family]:
    """The families that a call may select, and the general one, which takes all sizes."""
    able = [f for f in schedules.families(target) if f.declines(call.spec, target) is None]
    if not able:
        raise LookupError(f"attncc.export: no kernel family takes {call.spec} on {target}")
    selected: dict[str, Family] = {}
    for problem in _problems(call):
        family = next((f for f in able if f.suits(call.spec, problem)), able[-1])
        selected[family.name] = family
        if len(selected) == len(able):
            break
    if None in (call.batch, call.heads, call.q_len, call.kv_len):
        selected[able[-1].name] = able[-1]  # sizes were sampled: should one select another family, this one serves it
    return list(selected.values())


def _problems(call: Call) -> Iterable[Problem]:
    """All that a call of fixed sizes can be, for any number of threads; a sample where sizes may change."""
    fixed = None not in (call.batch, call.heads, call.q_len, call.kv_len)
    choices = (
        _values(call.batch, _FEW_SAMPLES),
        _values(call.heads, _FEW_SAMPLES),
        _values(call.q_len, _SAMPLES),
        _values(call.kv_len, _SAMPLES),
        range(1, support.MOST_THREADS + 1) if fixed else _FEW_SAMPLES,
    )
    for batch, heads, q_len, kv_len, threads in itertools.product(*choices):
        yield Problem(batch, heads, q_len, kv_len, threads)


def _values(size: Size, samples: Sequence[int]) -> Sequence[int]:
    return samples if size is None else (size,)
