"""`attncc.export` and `attncc.load`: the artifact computes what the model does, without TVM."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from export.model import SIZES, Block, inputs
from torch import nn

import attncc
from attncc.backend import UnfusedAttention
from attncc.export import Exported
from attncc.runtime import ahead

HERE = Path(__file__).parent


def run_clean(path: Path, cases: list[Any], folder: Path, python: str = sys.executable, **env: str) -> dict[str, Any]:
    """What clean_process.py says of an artifact."""
    torch.save(cases, folder / "cases.pt")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), **env}
    command = [python, "-W", "ignore", str(HERE / "clean_process.py"), str(path), str(folder / "cases.pt")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_artifact_is_as_exact_as_the_model(path: Path, model: Block) -> None:
    """Batches and lengths of every regime, against the model in float64: at most twice the model's own error."""
    loaded, exact = attncc.load(path), copy.deepcopy(model).double()
    for size in SIZES:
        x, keep = inputs(*size)
        with torch.no_grad():
            truth, eager = exact(x.double(), keep), model(x, keep)
        found = loaded(x, keep)
        assert found.keys() == truth.keys()
        for name in truth:
            allowed = 2 * (eager[name] - truth[name]).abs().max() + 2.4e-7 * truth[name].abs().max()
            assert (found[name] - truth[name]).abs().max() <= allowed, (size, name)


def test_a_process_without_tvm_and_without_a_toolchain_runs_it(path: Path, model: Block, tmp_path: Path) -> None:
    """Several kernels in parallel loops, from four threads, and in a forked child; nothing is compiled or left to
    PyTorch, no library of TVM but tvm_ffi is loaded."""
    with torch.no_grad():
        cases = [(inputs(*size), {}, model(*inputs(*size))) for size in (*SIZES, (8, 300))]
    told = run_clean(path, cases, tmp_path)
    assert max(*told["differences"], *told["child"], told["threads"]) < 2e-6
    assert told["tvm"] == told["libraries"] == []
    assert (told["compiles"], told["fallbacks"]) == (0, 0)
    assert told["calls"] == 5 * len(cases)
    assert len(told["families"]) >= 3


def test_what_was_exported_is_said(exported: Exported) -> None:
    """Sites with their kernels, targets, size; as text and as JSON."""
    (site,) = exported.sites
    assert site.fused and site.location.startswith("model.py:")
    assert "cpu.decode" in site.kernel
    told = json.loads(exported.to_json())
    assert told["sites"][0]["fused"] and told["libraries"][0]["kernels"]
    assert exported.bytes == exported.path.stat().st_size
    assert "1 found, 1 fused" in str(exported) and str(exported.path.name) in str(exported)


def test_other_sizes_than_exported_are_an_error(model: Block, tmp_path: Path) -> None:
    """Fixed sizes need fewer kernels; a call with others does not run."""
    fixed = attncc.export(model, inputs(2, 9), tmp_path / "fixed")
    assert len(fixed.libraries[0].kernels) == 1
    loaded = attncc.load(fixed.path)
    torch.testing.assert_close(loaded(*inputs(2, 9)), model(*inputs(2, 9)))
    with pytest.raises((AssertionError, RuntimeError), match="9"):
        loaded(*inputs(2, 10))


def test_an_artifact_is_for_inference(path: Path) -> None:
    """Gradients and training are refused, with what to do; eval() is what it is in already."""
    loaded = attncc.load(path)
    x, keep = inputs(2, 5)
    with pytest.raises(RuntimeError, match=r"for inference.*torch\.no_grad"):
        loaded(x.requires_grad_(), keep)
    with torch.no_grad():
        assert not loaded(x, keep)["out"].requires_grad
    assert loaded.eval() is loaded
    with pytest.raises(ValueError, match="for inference"):
        loaded.train()
    assert not any(p.requires_grad for p in loaded.parameters())


def test_a_model_in_training_mode_is_refused(tmp_path: Path) -> None:
    """Dropout and the like would be frozen into the program."""
    with pytest.raises(ValueError, match=r"training mode.*call model\.eval\(\)"):
        attncc.export(Block().train(), inputs(2, 5), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_what_is_not_fused_stays_with_pytorch_and_is_reported(tmp_path: Path) -> None:
    """Also a program without any kernel; under `strict` nothing is written."""

    def over_queries(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.transpose(-2, -1)).softmax(-2) @ v

    qkv = torch.randn(3, 2, 3, 9, 8).unbind()
    exported = attncc.export(over_queries, qkv, tmp_path / "model.pt2")
    assert [site.fused for site in exported.sites] == [False]
    assert "another axis" in exported.sites[0].reason and exported.sites[0].next_step
    assert exported.libraries == () and "no attention was fused" in str(exported)
    torch.testing.assert_close(attncc.load(exported.path)(*qkv), over_queries(*qkv))
    with pytest.raises(UnfusedAttention, match="another axis"):
        attncc.export(over_queries, qkv, tmp_path / "strict.pt2", strict=True)
    assert not (tmp_path / "strict.pt2").exists()


def test_autocast_inside_of_the_model_is_refused(tmp_path: Path) -> None:
    """What torch.export writes of it does not load again."""

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    with pytest.raises(ValueError, match=r"enters torch\.autocast.*model\.to"):
        attncc.export(attend, torch.randn(3, 2, 3, 9, 8).unbind(), tmp_path / "model.pt2")


def test_results_of_a_class_of_its_own_are_refused(tmp_path: Path) -> None:
    """The loading process may not have the class."""

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return {"x": x, "cache": object()}

    with pytest.raises(ValueError, match=r"returns a object.*use_cache=False"):
        attncc.export(Model().eval(), (torch.ones(2),), tmp_path / "model.pt2")


def test_kernels_are_used_for_as_long_as_the_artifact_is_there(path: Path) -> None:
    """A library that nothing refers to any more provides nothing; of two, the later one is asked first."""
    first, second = attncc.load(path), attncc.load(path)
    (kernel, *_) = next(iter(second._library._kernels.values()))
    from attncc.schedules import Problem

    problem = Problem(1, 4, 64, 64, 1)
    found = ahead.find(kernel.spec, problem)
    assert found is not None and found.module.same_as(kernel.module)
    spec = kernel.spec
    del found, kernel, second
    again = ahead.find(spec, problem)
    assert again is not None and again.module.same_as(first._library._module)
    del again, first
    assert ahead.find(spec, problem) is None
