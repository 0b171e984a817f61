"""A virtual environment with attncc and what it depends on, but without TVM, where artifacts run; other machines."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from export.model import SIZES, Block, inputs
from export.test_export import run_clean
from packaging.requirements import Requirement

import attncc
from attncc.export import ArtifactError
from attncc.export.link import NoLinker

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


def needed(name: str, found: set[str]) -> set[str]:
    """A distribution and all that it requires, but for TVM."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name not in found and name != "apache-tvm":
        found.add(name)
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                needed(requirement.name, found)
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an environment that holds attncc's wheel, and links to what it requires here."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    source = folder / "source"
    source.mkdir()
    for name in ("attncc", "passes", "schedules", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", "-a", str(ROOT / name), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for name in needed("attncc", set()) - {"attncc"}:
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    yield folder / "venv" / "bin" / "python"


def check(python: Path, path: Path, cases: list[Any], folder: Path, most: float) -> None:
    """An artifact gives the expected results there, by its own kernels."""
    told = run_clean(path, cases, folder, str(python), PYTHONPATH="")
    assert max(*told["differences"], *told["child"], told["threads"]) < most
    assert told["tvm"] == told["libraries"] == []
    assert (told["compiles"], told["fallbacks"]) == (0, 0) and told["calls"] > 0


def test_there_is_no_tvm(python: Path) -> None:
    """The environment is what it is meant to be."""
    code = "import importlib.util as u; print([n for n in ('tvm', 'tvm_ffi', 'attncc') if u.find_spec(n)])"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['tvm_ffi', 'attncc']"


def test_the_artifact_runs_there(python: Path, path: Path, model: Block, tmp_path: Path) -> None:
    """All regimes."""
    with torch.no_grad():
        cases = [(inputs(*size), {}, model(*inputs(*size))) for size in SIZES]
    check(python, path, cases, tmp_path, 2e-6)


@pytest.mark.parametrize(("name", "dtype"), [("Bert", torch.float32), ("Llama", torch.bfloat16)])
def test_transformers_models_run_there(python: Path, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """With padding, open batch and length; Transformers is not installed where they run. bfloat16 differs from eager by
    no more than three units in the last place of its largest number."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{name}Config")(
        **sizes, intermediate_size=96, max_position_embeddings=256, attn_implementation="eager", use_cache=False,
        **({"num_key_value_heads": 2} if name == "Llama" else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(config).eval().to(dtype)

    def batch(rows: int, length: int) -> dict[str, torch.Tensor]:
        mask = torch.ones(rows, length, dtype=torch.long)
        for row in range(1, rows):
            mask[row, length - 3 * row % length :] = 0
        return {"input_ids": torch.randint(1, 100, (rows, length)), "attention_mask": mask}

    open_sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=256)}
    shapes = dict.fromkeys(("input_ids", "attention_mask"), open_sizes)
    exported = attncc.export(model, (), tmp_path / "model.pt2", batch(3, 21), dynamic_shapes=shapes)
    assert [site.fused for site in exported.sites] == [True, True]
    with torch.no_grad():
        cases = []
        for size in ((3, 21), (2, 7), (4, 150)):
            given = batch(*size)
            cases.append(((), given, {"last_hidden_state": model(**given).last_hidden_state}))
    largest = max(float(expected["last_hidden_state"].abs().max()) for _, _, expected in cases)
    check(python, exported.path, cases, tmp_path, 3 * largest * torch.finfo(dtype).eps + 1e-5)


def test_several_targets_and_a_poorer_machine(model: Block, path: Path, tmp_path: Path) -> None:
    """The first that this machine can run is taken, which may be a cross-compiled one."""
    targets = ["llvm -mcpu=sapphirerapids", "x86-64-v3"]
    if attncc.info().target.arch != "x86_64":
        pytest.skip("for x86-64")
    exported = attncc.export(model, inputs(2, 40), tmp_path / "model.pt2", target=targets)
    loaded = attncc.load(exported.path)
    if "amx-bf16" not in attncc.info().target.features:
        assert loaded._library.target.mcpu == "x86-64-v3"
    torch.testing.assert_close(loaded(*inputs(2, 40)), model(*inputs(2, 40)))


def test_another_architecture(model: Block, tmp_path: Path) -> None:
    """Built where there is a linker for it, else said so."""
    try:
        exported = attncc.export(model, inputs(2, 40), tmp_path / "model.pt2", target="cortex-a76")
    except NoLinker as error:
        assert "no linker for aarch64" in str(error)
        return
    assert exported.libraries[0].arch == "aarch64"
    with pytest.raises(ArtifactError, match="need aarch64"):
        attncc.load(exported.path)
