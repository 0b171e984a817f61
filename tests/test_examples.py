"""Every example runs as its docstring says, asserts its own result, and reports what was fused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WARNINGS = "error:attncc:RuntimeWarning"
"""A kernel that cannot be built falls back to PyTorch with a warning: here that is a failure."""
EXAMPLES = [
    pytest.param(path, id=path.stem, marks=() if path.stem == "bilinear" else pytest.mark.slow)
    for path in sorted((ROOT / "examples").glob("*.py"))
]


@pytest.mark.parametrize("path", EXAMPLES)
def test_example(path: Path, tmp_path: Path) -> None:
    """Run as a script from the root of the sources; no site may be left unfused in any of them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ATTNCC_CACHE_DIR": str(tmp_path), "PYTHONWARNINGS": WARNINGS}
    command = [sys.executable, str(path.relative_to(ROOT))]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert "not fused" not in result.stdout, result.stdout
    assert "cpu." in result.stdout, "the report names no kernel"
    assert f"python examples/{path.name}" in path.read_text()
