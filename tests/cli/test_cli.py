"""The command line: every command answers, prints JSON that parses, and turns any error into one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from attncc.cli import main

Run = Callable[..., tuple[int, str, str]]

FACTORY = """
import torch

def attend(q, k, v):
    return (q @ k.transpose(-2, -1) * 0.25).softmax(-1) @ v

def over_queries(q, k, v):
    return (q @ k.transpose(-2, -1) * 0.25).softmax(-2) @ v

def factory():
    return attend, torch.randn(3, 1, 2, 20, 16).unbind()

def keywords():
    return attend, (), dict(zip("qkv", torch.randn(3, 1, 2, 20, 16).unbind()))

def refused():
    return over_queries, list(torch.randn(3, 1, 2, 20, 16).unbind())

def wrong():
    return attend
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `attncc` with arguments in this process and an own cache: (exit status, stdout, stderr)."""
    monkeypatch.setenv("ATTNCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["attncc", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        status = ended.value.code
        return status if isinstance(status, int) else 0, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("explain",), ("info",), ("bench",), ("cache",), ("device",), ("cache", "list")]
)
def test_help(run: Run, command: tuple[str, ...]) -> None:
    """Help names the options; a command with something to choose shows examples."""
    status, out, err = run(*command, "--help")
    assert (status, err) == (0, "")
    assert "--help" in out
    if command and command != ("cache", "list"):
        assert "Examples" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("nope",), "No such command 'nope'"),
        (("explain",), "Missing argument 'MODULE:FACTORY'"),
        (("explain", "no_colon"), "module:factory"),
        (("explain", "no_such_module_anywhere:factory"), "no_such_module_anywhere"),
        (("explain", "no/such/file.py:factory"), "no file no/such/file.py"),
        (("explain", "json:nothing_there"), "no function 'nothing_there'"),
        (("bench", "--seq", "0"), "--seq"),
        (("bench", "--seq", "8", "--q-len", "8"), "--seq sets both lengths"),
        (("bench", "--dtype", "float8"), "float8"),
        (("bench", "--heads", "6", "--kv-heads", "4"), "not a multiple of kv_heads=4"),
        (("bench", "--regime", "training"), "prefill or decode"),
        (("bench", "--only", "sdpa,magic"), "magic"),
        (("device", "list", "--tracker", "9190"), "host:port"),
        (("device", "tracker", "--host", "0.0.0.0"), "--allow-remote-code-execution-from-network"),
        (("tune", "--suite", "common", "--key", "zen4"), "--tracker HOST:PORT and --key KEY go together"),
        (("bench", "--masks", "--dtype", "bfloat16"), "--masks runs cases of its own"),
    ],
)
def test_an_error_is_one_line(run: Run, args: tuple[str, ...], says: str) -> None:
    """Never a traceback, never a status of 0."""
    status, out, err = run(*args)
    assert status != 0
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("attncc: error: ")
    assert says in last
    assert "Traceback" not in err


def test_explain_a_file(run: Run, tmp_path: Path) -> None:
    """A path names a file; the report says what was fused, and --strict fails where something was not."""
    model = tmp_path / "model_of_test_cli.py"
    model.write_text(FACTORY)
    status, out, _ = run("explain", f"{model}:factory", "--strict")
    assert status == 0
    assert "model_of_test_cli.py:5" in out
    assert "cpu." in out
    for factory in ("factory", "keywords"):
        status, out, _ = run("explain", f"{model}:{factory}", "--json")
        assert (status, json.loads(out)["fused"]) == (0, 1)
    status, out, _ = run("explain", f"{model}:refused", "--strict")
    assert status == 1
    assert "not fused" in out
    status, _, err = run("explain", f"{model}:wrong")
    assert status == 1
    assert "must return (model, inputs)" in err


def test_explain_a_module_of_the_current_folder(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found as `python -m` would find it."""
    (tmp_path / "other_model_of_test_cli.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("explain", "other_model_of_test_cli:factory", "--json")
    assert (status, json.loads(out)["found"]) == (0, 1)


def test_info(run: Run) -> None:
    """As text and as JSON, the same facts."""
    status, out, _ = run("info")
    assert status == 0
    data = json.loads(run("info", "--json")[1])
    assert data["peak"] is None
    assert data["target"]["mcpu"] in out
    assert data["families"][-1]["name"] in out
    assert set(data["families"][-1]["declined"].values()) == {None}, "the last family runs every dtype"
    gpus = {family["name"]: family["gpus"] for family in data["cuda_families"]}
    assert gpus["cuda.prefill.wgmma"] == "sm_90a" and gpus["cuda.simt"] == "sm_75 and newer"
    assert set(gpus) <= set(out.split())


def test_cache(run: Run, tmp_path: Path) -> None:
    """A kernel that was built is listed, with what it computes, and gone after `clear`."""
    model = tmp_path / "third_model_of_test_cli.py"
    model.write_text(FACTORY.replace("0.25", "0.125").replace(", 16)", ", 19)"))
    assert json.loads(run("cache", "list", "--json")[1]) == []
    run("explain", f"{model}:factory")
    (entry,) = json.loads(run("cache", "list", "--json")[1])
    assert entry["valid"]
    listing = run("cache", "list")[1]
    assert entry["key"]["family"] in listing
    assert entry["name"][:12] in listing
    assert run("cache", "path")[1].strip() == str(tmp_path / "cache")
    assert "removed 1 kernel from" in run("cache", "clear")[1]
    assert json.loads(run("cache", "list", "--json")[1]) == []


def test_bench(run: Run) -> None:
    """One small shape: checked, timed, and related to a peak measured in the same run."""
    args = ("bench", "--seq", "64", "--heads", "2", "--window", "10", "--causal", "--only", "sdpa", "--quick")
    status, out, _ = run(*args)
    assert status == 0
    assert "S64 D64 float32 causal window 10" in out
    data = json.loads(run(*args, "--json")[1])
    (result,) = data["results"]
    assert result["passed"]
    assert [entry["name"] for entry in result["contenders"]] == ["sdpa", "attncc"]
    assert all(entry["timing"]["median"] > 0 and entry["share"] > 0 for entry in result["contenders"])
    assert data["peak"]["fp32_gflops"] > 1


def test_the_module_is_the_command() -> None:
    """On a checkout that is not installed there is no script."""
    command = [sys.executable, "-m", "attncc", "--help"]
    assert "bench" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
