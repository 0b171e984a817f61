"""What is shipped: one importable package, everything it needs inside, and the entry points that users rely on."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """A wheel built from a copy of the tree: a build leaves folders behind, which must not land in the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("attncc", "passes", "schedules", "examples", "tests", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-a", str(ROOT / name), str(source)], check=True)
    (source / "attncc" / "data" / "tuned").mkdir(exist_ok=True)
    (source / "attncc" / "data" / "tuned" / "of-a-test.jsonl").write_text("")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=600)
    (path,) = out.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_installs_one_package(wheel: zipfile.ZipFile) -> None:
    """`passes` and `schedules` are folders of the repository; as top-level packages they would collide with others."""
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"attncc"}


def test_the_wheel_holds_every_source_file(wheel: zipfile.ZipFile) -> None:
    """Also those that are reached through the symlinks attncc/passes and attncc/schedules."""
    expected = {f"attncc/{p.relative_to(ROOT / 'attncc')}" for p in (ROOT / "attncc").rglob("*.py")}
    for folder in ("passes", "schedules"):
        expected |= {f"attncc/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*.py")}
    shipped = {name for name in wheel.namelist() if name.endswith(".py")}
    assert shipped == expected
    assert {"attncc/py.typed", "attncc/data/paragraphs.txt"} <= set(wheel.namelist())


def test_the_wheel_holds_the_tuned_records(wheel: zipfile.ZipFile) -> None:
    """Every file of them, where the runtime looks for them."""
    from attncc.tuning.sources import SHIPPED

    expected = {f"attncc/data/tuned/{path.name}" for path in SHIPPED.glob("*.jsonl")}
    assert expected | {"attncc/data/tuned/of-a-test.jsonl"} <= set(wheel.namelist())


def test_the_wheel_declares_the_entry_points_and_the_licence(wheel: zipfile.ZipFile) -> None:
    """The command, and the name under which torch.compile finds the backend."""
    (entries,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entries).decode()
    assert "attncc = attncc.cli:main" in text
    assert "[torch_dynamo_backends]\nattncc = attncc.backend:attncc" in text
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


@pytest.mark.slow
def test_the_installed_wheel_works(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Away from the sources: torch lists the backend, a compiled function is right, the command answers."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site")]
    subprocess.run([*command, str(wheel.filename)], check=True, capture_output=True, timeout=600)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    code = """
import torch, attncc
assert "attncc" in torch.compiler.list_backends(), torch.compiler.list_backends()
q, k, v = torch.randn(3, 1, 2, 40, 16).unbind()
attend = lambda q, k, v: (q @ k.mT * 0.25).softmax(-1) @ v
torch.testing.assert_close(torch.compile(attend, backend="attncc")(q, k, v), attend(q, k, v))
print(attncc.stats().calls, attncc.__file__)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["1", str(tmp_path / "site" / "attncc" / "__init__.py")]
    script = [sys.executable, str(tmp_path / "site" / "bin" / "attncc"), "--version"]
    result = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "0.1.0"), result.stderr


def test_the_entry_points_of_the_project_exist() -> None:
    """What pyproject names can be imported and called."""
    import importlib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for target in (*project["scripts"].values(), *project["entry-points"]["torch_dynamo_backends"].values()):
        module, _, name = target.partition(":")
        assert callable(getattr(importlib.import_module(module), name))


def test_import_is_light() -> None:
    """`import attncc` loads neither TVM nor Transformers: a program that only might use them does not pay for them."""
    code = (
        "import sys, attncc; print([m for m in ('tvm', 'transformers', 'typer', 'attncc.tuning') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_versions_agree() -> None:
    """The package says the version that pyproject does."""
    import attncc

    assert attncc.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
