"""The README says nothing that does not run: its snippets, what it prints, its support matrix, its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attncc.info import SUPPORT

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_snippets_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one namespace, from top to bottom, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(snippets) >= 4
    namespace: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)


def test_the_report_is_what_explain_prints(tmp_path: Path) -> None:
    """The example, saved as model.py, prints the text below it; only the time differs."""
    ((snippet, text),) = re.findall(
        r"```python\n([^`]*attncc\.explain[^`]*)```\n\n```text\n(.*?)```", README, flags=re.DOTALL
    )
    (tmp_path / "model.py").write_text(snippet)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "model.py"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert _timeless(result.stdout) == _timeless(text)


def _timeless(text: str) -> str:
    return re.sub(r"compiled in [\d.]+ s", "compiled", "\n".join(line.rstrip() for line in text.strip().splitlines()))


def test_the_first_lines_show_a_check_and_the_commands() -> None:
    """Within 30 lines: five lines of code that end in a comparison, and the commands that run and test everything."""
    top = "\n".join(README.splitlines()[:30])
    (snippet,) = re.findall(r"```python\n(.*?)```", top, flags=re.DOTALL)
    lines = snippet.strip().splitlines()
    assert len(lines) == 5
    assert lines[-1].startswith("torch.testing.assert_close(")
    assert "pip install -e '.[demo]' && attncc demo" in top
    assert "pip install -e '.[test]' && python -m pytest" in top


def test_the_support_matrix_is_that_of_info() -> None:
    """Row by row."""
    for row in SUPPORT:
        assert "| " + " | ".join(cell for cell in row if cell) in README, row


def test_every_figure_is_filled_in() -> None:
    """No placeholder is left."""
    assert "⟨" not in README
