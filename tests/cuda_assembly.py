"""Machine code of CUDA kernels, by nvcc and ptxas: what they spill, and what instructions they are made of."""

from __future__ import annotations

import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from attncc.runtime.cuda import nvrtc


def to_ptx(source: bytes, gpu: str, folder: Path) -> bytes:
    path, ptx = folder / "kernel.cu", folder / "kernel.ptx"
    path.write_bytes(source)
    arch = gpu.replace("sm", "compute")
    subprocess.run(["nvcc", "-w", "-ptx", *nvrtc.OPTIONS, f"-arch={arch}", str(path), "-o", str(ptx)], check=True)
    return ptx.read_bytes()


def assemble(ptx: bytes, gpu: str, folder: Path) -> tuple[list[int], list[int]]:
    """Bytes that each kernel spills, and the opcodes of all its machine code."""
    path, cubin = folder / f"{gpu}.ptx", folder / f"{gpu}.cubin"
    path.write_bytes(ptx)
    command = ["ptxas", "-v", f"-arch={gpu}", str(path), "-o", str(cubin)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "Potential Performance Loss" not in report, "tensor-core instructions wait for each other"
    return [int(n) for n in re.findall(r"(\d+) bytes spill stores", report)], list(opcodes(cubin.read_bytes()))


def opcodes(elf: bytes) -> Iterator[int]:
    """The low 12 bits of each 16-byte instruction in a cubin's sections of code."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", elf, 0x28)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + size * n) for n in range(count)]
    text = elf[sections[names][4] :]
    for name, _, _, _, offset, length in sections:
        if text[name:].startswith(b".text."):
            for place in range(offset, offset + length, 16):
                yield struct.unpack_from("<H", elf, place)[0] & 0xFFF
