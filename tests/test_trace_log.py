"""What a compilation leaves to read, in processes of their own: TORCH_LOGS is looked at when torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import torch, attncc

def attend(q):
    return torch.softmax(q @ q.mT, -1) @ q, torch.softmax(q @ q.mT, -2) @ q

attncc.compile(attend)(torch.randn(1, 2, 8, 16))
"""

pytestmark = pytest.mark.slow  # one process, which compiles, for both


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """What one run of the program writes to stderr, and to the folder of TORCH_TRACE."""
    folder = tmp_path_factory.mktemp("trace_log")
    (folder / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "TORCH_LOGS": "+attncc", "TORCH_TRACE": str(folder / "trace")}
    command = [sys.executable, str(folder / "program.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (file,) = (folder / "trace").iterdir()
    return done.stderr, file.read_text()


def test_torch_logs_takes_our_name(output: tuple[str, str]) -> None:
    text, _ = output
    assert "program.py:5: fused: softmax attention float32" in text
    assert "program.py:5: not fused: " in text and "another axis" in text
    assert "IR after fuse_attention:" in text and "= attention{" in text


def test_torch_trace_has_the_ir_and_the_sites(output: tuple[str, str]) -> None:
    """The files are what `tlparse` reads: a line of metadata, then the payload, indented."""
    _, text = output
    payloads: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("\t"):
            payloads[name] = payloads.get(name, "") + line[1:] + "\n"
        else:
            name = json.loads(line.partition("] ")[2] or "{}").get("artifact", {}).get("name", "")
    assert "# after convert" in payloads["attncc_ir"] and "# after fuse_attention" in payloads["attncc_ir"]
    sites = json.loads(payloads["attncc_sites"])
    assert [site["fused"] for site in sites] == [True, False]
    assert sites[0]["spec"]["head_dim"] == 16 and "axis" in sites[1]["reason"]
