"""Reads the assembly of a kernel: its innermost loops, what they multiply with, and what they should not do.

A product keeps its sums in registers from the first term to the last. Vector registers on the stack in its loop, stored
or loaded, mean that sums or operands did not fit: a spill.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_STACK = {"x86_64": r"\(%rsp\)", "aarch64": r"\[sp(?:, #[^\]]*)?\]"}
"""At a constant place: what is indexed is a buffer."""
_VECTOR = {"x86_64": r"%[xyz]mm\d", "aarch64": r"\b[qdsvz]\d+\b"}
_STORE = {"x86_64": r"^v?mov\w+\s+%[xyz]mm\d+.*, .*\(", "aarch64": r"^st\w+\s+[{ ]*[qdsvz]\d"}
_ROUND = {"x86_64": r"^v(?:round|rndscale)p", "aarch64": r"^frint"}
_CALL = {"x86_64": r"^callq?\s+(\S+)", "aarch64": r"^bl\s+(\S+)"}
_OWN = re.compile(r"tvm|TVM|attncc|attention|mem(?:set|cpy|move)\b|^\*")
"""What a kernel may call: TVM's runtime, its own parts, and the launcher, through a pointer."""


@dataclass(frozen=True)
class Loop:
    """A loop without another one in it, or a label."""

    arch: str
    label: str
    lines: tuple[str, ...]
    """Its instructions, without indentation."""

    def count(self, instruction: str) -> int:
        """How many instructions match a regular expression from their start on."""
        return sum(re.match(instruction, line) is not None for line in self.lines)

    @property
    def stores(self) -> list[str]:
        """Stores of vector registers, to the stack or elsewhere."""
        return self._matching(_STORE)

    @property
    def spilled_sums(self) -> list[str]:
        """Spills that store. (What does not change in a loop may as well be read from the stack as from its place.)"""
        return [line for line in self.stores if line in self.spills]

    @property
    def rounds(self) -> bool:
        """Whether numbers are rounded to integers, as exponentials do, and nothing else."""
        return bool(self._matching(_ROUND))

    @property
    def spills(self) -> list[str]:
        """Instructions that move a vector register to or from the stack, or compute with one that is there."""
        places = re.findall(r"^(?:add|sub|addvl|addpl)\s+(x\d+), (?:sp|x29)\b", "\n".join(self.lines), re.MULTILINE)
        far = re.compile(rf"\[(?:x29|{'|'.join(places) or 'x29'})\b")  # in large frames of AArch64
        return [line for line in self.lines if self._on_stack(line, far) and re.search(_VECTOR[self.arch], line)]

    def _on_stack(self, line: str, far: re.Pattern[str]) -> bool:
        return bool(re.search(_STACK[self.arch], line) or (self.arch == "aarch64" and far.search(line)))

    @property
    def calls(self) -> list[str]:
        return self._matching(_CALL)

    def _matching(self, patterns: dict[str, str]) -> list[str]:
        return [line for line in self.lines if re.search(patterns[self.arch], line)]


def inner_loops(code: str, arch: str) -> list[Loop]:
    """The loops of a kernel that contain no other label: each is one basic block."""
    loop = r"^(\.?L\w+):[^\n]*\n((?:(?!\.?L\w+:)[^\n]*\n)*?)\s+(?:j\w+|b\.\w+|cbn?z\s+\w+,|tbn?z\s+\w+, \S+,)\s+\1\b"
    found = re.findall(loop, code, re.MULTILINE)
    return [Loop(arch, label, tuple(_instructions(body))) for label, body in found]


def product_loops(code: str, arch: str, multiply: str, least: int) -> list[Loop]:
    """The innermost loops that multiply at least `least` vectors by an instruction, but those of polynomials."""
    return [loop for loop in inner_loops(code, arch) if loop.count(multiply) >= least and not loop.rounds]


def product_blocks(code: str, arch: str, multiply: str, least: int) -> list[Loop]:
    """The basic blocks that multiply so: loops, and those that LLVM has unrolled whole."""
    parts = re.split(r"^(\.?L\w+):.*$", code, flags=re.MULTILINE)
    bodies = zip(parts[1::2], parts[2::2], strict=True)
    blocks = [Loop(arch, label, tuple(_instructions(body))) for label, body in bodies]
    return [block for block in blocks if block.count(multiply) >= least and not block.rounds]


def library_calls(code: str, arch: str) -> set[str]:
    """Functions that a kernel calls and that are neither TVM's runtime nor its own: libm's, for a scalar at a time."""
    called = {match[1] for line in _instructions(code) if (match := re.match(_CALL[arch], line))}
    return {name for name in called if not _OWN.search(name)}


def _instructions(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith((".", "#", "//", ";"))]
