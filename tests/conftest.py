"""What all tests share: a kernel cache of their own, so that none touches the user's, and golden texts."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"

# Set when pytest starts, before any module of attncc looks, and inherited by the processes that tests start.
_folder = tempfile.mkdtemp(prefix="attncc-tests-")
os.environ["ATTNCC_CACHE_DIR"] = _folder
atexit.register(shutil.rmtree, _folder, ignore_errors=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the texts in tests/golden that differ")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text is that of tests/golden/NAME; `--update-golden` makes it so."""
    update = request.config.getoption("--update-golden")

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        text = text.rstrip() + "\n"
        if update and (not path.exists() or path.read_text() != text):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"there is no {path}; pytest --update-golden writes it"
        assert text == path.read_text(), f"{path} differs; where that is meant, pytest --update-golden rewrites it"

    return check
