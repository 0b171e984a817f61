"""What a compilation leaves to read, in processes of their own: TORCH_LOGS is looked at when torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import torch, attncc

def attend(q):
    return torch.softmax(q @ q.mT, -1) @ q, torch.softmax(q @ q.mT, -2) @ q

attncc.compile(attend)(torch.randn(1, 2, 8, 16))
"""


def run(tmp_path: Path, **environment: str) -> str:
    """What the program writes to stderr."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program)], env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("setting", ["attncc", "+attncc"])
def test_torch_logs_takes_our_name(tmp_path: Path, setting: str) -> None:
    text = run(tmp_path, TORCH_LOGS=setting)
    assert "program.py:5: fused: softmax attention float32" in text
    assert "program.py:5: not fused: " in text and "another axis" in text
    assert ("IR after fuse_attention:" in text and "= attention{" in text) == (setting == "+attncc")


def test_torch_trace_has_the_ir_and_the_sites(tmp_path: Path) -> None:
    """The files are what `tlparse` reads: a line of metadata, then the payload, indented."""
    run(tmp_path, TORCH_TRACE=str(tmp_path / "trace"))
    (file,) = (tmp_path / "trace").iterdir()
    payloads: dict[str, str] = {}
    name = ""
    for line in file.read_text().splitlines():
        if line.startswith("\t"):
            payloads[name] = payloads.get(name, "") + line[1:] + "\n"
        else:
            name = json.loads(line.partition("] ")[2] or "{}").get("artifact", {}).get("name", "")
    assert "# after convert" in payloads["attncc_ir"] and "# after fuse_attention" in payloads["attncc_ir"]
    sites = json.loads(payloads["attncc_sites"])
    assert [site["fused"] for site in sites] == [True, False]
    assert sites[0]["spec"]["head_dim"] == 16 and "axis" in sites[1]["reason"]
