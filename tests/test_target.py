"""Detection and parsing of targets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from attncc import system, target
from attncc.export.machine import missing, needs


def test_host_is_described_without_importing_tvm() -> None:
    code = "import sys; from attncc.target import detect; t = detect(); print(t.mcpu, 'tvm' in sys.modules)"
    mcpu, imported = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    host = target.detect()
    assert mcpu == host.mcpu and imported == "False"
    assert host.kind == "cpu" and host.cores >= 1 and 8 << 10 <= host.l1 <= host.l2
    assert set(host.features) <= set(target.FEATURES[host.arch])


@pytest.mark.parametrize(
    ("text", "arch", "bits", "has", "lacks"),
    [
        ("x86-64-v3", "x86_64", 256, {"avx2", "fma"}, {"avx512f"}),
        ("x86-64", "x86_64", 128, set(), {"avx", "fma"}),
        ("llvm -mcpu=sapphirerapids", "x86_64", 512, {"amx-bf16", "avx512bf16"}, set()),
        ("cortex-a76", "aarch64", 128, {"neon", "dotprod"}, {"sve"}),
        ("llvm -mtriple=aarch64-unknown-linux-gnu -mcpu=neoverse-v1", "aarch64", 256, {"sve", "bf16"}, set()),
        ("a64fx", "aarch64", 512, {"sve"}, {"bf16"}),
        ("neoverse-v2", "aarch64", 128, {"sve2"}, set()),
        ("llvm -mcpu=neoverse-v1 -sve-bits=128", "aarch64", 128, {"sve"}, set()),
        ("llvm -mcpu=neoverse-v1 -mattr=-sve", "aarch64", 128, {"bf16"}, {"sve"}),
    ],
)
def test_parse_knows_what_llvm_knows(text: str, arch: str, bits: int, has: set[str], lacks: set[str]) -> None:
    parsed = target.parse(text)
    assert (parsed.arch, parsed.vector_bits) == (arch, bits)
    assert has <= parsed.features and not lacks & parsed.features


def test_hidden_features_reach_llvm_and_the_key() -> None:
    """A hypervisor may mask what LLVM believes every znver4 to have: the code must not use it."""
    full, masked = target.parse("znver4"), target.parse("llvm -mcpu=znver4 -mattr=-avx512f -num-cores=3")
    assert "-avx512f" in masked.mattr and "+avx512f" in full.mattr
    assert masked.vector_bits == 256 and masked.cores == 3 and masked.key != full.key


def test_host_text_forms() -> None:
    assert target.parse("cpu") is target.parse("native") is target.parse("llvm") is target.detect()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("znver44", "znver4"),
        ("llvm -mcp=znver4", "-mcpu"),
        ("llvm -num-cores=0", "num-cores"),
        ("llvm -mcpu=neoverse-v1 -sve-bits=384", "none of 128, 256, 512"),
        ("vulkan -x", "vulkan"),
        ("cuda", "detected by its tensors"),
    ],
)
def test_unknown_targets_are_refused_with_a_hint(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        target.parse(text)


def test_the_length_of_vectors_is_part_of_the_key() -> None:
    """Code for SVE of one length is wrong on a machine of another."""
    long, short = (target.parse(f"llvm -mcpu=neoverse-v1 -sve-bits={bits}") for bits in (256, 128))
    assert long.sve_bits == 256 and short.sve_bits == 0 and long.key != short.key
    assert needs(long) == sorted([*needs(short), "sve-of-256-bits"])
    assert "sve-of-256-bits" in missing(target.detect().arch, needs(long)) or target.detect().sve_bits == 256


def test_the_length_of_vectors_is_asked_for() -> None:
    """In bits; 0 on a machine without SVE."""
    bits = system.sve_bits()
    assert bits % 128 == 0 and bool(bits) == ("sve" in system.features())
