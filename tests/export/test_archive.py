"""The file: damage, other versions and other machines are found before anything of it runs."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export.model import Block, inputs

import attncc
from attncc.export import ArtifactError, archive, machine
from attncc.target import detect, parse


def changed(path: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of an artifact with another manifest."""
    copy = folder / "changed.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("manifest.json"):
                manifest = json.loads(data)
                edit(manifest)
                data = json.dumps(manifest).encode()
            new.writestr(name, data)
    return copy


def test_the_program_reads_without_attncc_load(path: Path, model: Block) -> None:
    """It is a .pt2 archive of torch.export; example inputs are not in it."""
    program = torch.export.load(path)
    torch.testing.assert_close(program.module()(*inputs(2, 9)), model(*inputs(2, 9)))
    assert all(not x.any() for x in program.example_inputs[0])


@pytest.mark.parametrize("where", ["library", "weights", "cut", "empty"])
def test_damage_is_found(path: Path, tmp_path: Path, where: str) -> None:
    """One byte of a library or of the weights, the end of the file, all of it."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        names = {"library": ".so", "weights": "/weight_0"}
        for info in file.infolist():
            if where in names and info.filename.endswith(names[where]):
                data[info.header_offset + info.file_size // 2 + 200] ^= 1
    if where in ("cut", "empty"):
        data = data[: len(data) // 2] if where == "cut" else bytearray()
    assert bytes(data) != path.read_bytes()
    (tmp_path / "damaged.pt2").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"damaged\.pt2"):
        attncc.load(tmp_path / "damaged.pt2")


def test_digests_are_checked_beyond_the_checksums_of_zip(path: Path, tmp_path: Path) -> None:
    """A library that was exchanged, the zip file being whole, and a record that was added."""
    other = changed(path, tmp_path, lambda manifest: None)
    attncc.load(other)
    with zipfile.ZipFile(other, "a") as file:
        file.writestr("model/attncc/more.so", b"x")
    with pytest.raises(ArtifactError, match="does not hold the records"):
        attncc.load(other)

    def edit(manifest: dict[str, Any]) -> None:
        (record,) = (name for name in manifest["digests"] if name.endswith(".so"))
        manifest["digests"][record] = "0" * 64

    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        attncc.load(changed(path, tmp_path, edit))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ({"format": 99}, "has format 99.*export it again"),
        ({"libraries": 1}, "does not read"),
        ({"versions": None}, "does not read|export it again"),
    ],
)
def test_other_formats_are_refused(path: Path, tmp_path: Path, edit: dict[str, Any], says: str) -> None:
    """With what to do."""
    if "versions" in edit:
        edit = {"libraries": [{"mcpu": "x"}], **edit}
    with pytest.raises(ArtifactError, match=says):
        attncc.load(changed(path, tmp_path, lambda manifest: manifest.update(edit)))


def test_files_of_others_are_refused(tmp_path: Path, model: Block) -> None:
    """A program that torch.export saved, a text, no file."""
    torch.export.save(torch.export.export(model, inputs(2, 5)), tmp_path / "plain.pt2")
    with pytest.raises(ArtifactError, match=r"not written by attncc\.export"):
        attncc.load(tmp_path / "plain.pt2")
    (tmp_path / "text.pt2").write_text("text")
    with pytest.raises(ArtifactError, match="is no artifact"):
        attncc.load(tmp_path / "text.pt2")
    with pytest.raises(FileNotFoundError):
        attncc.load(tmp_path / "none.pt2")


def test_kernels_of_other_sources_are_not_called(path: Path, model: Block, tmp_path: Path) -> None:
    """Work tables are made by this attncc: kernels of another could read them as something else. With `fallback` the
    attention is compiled here."""
    other = changed(path, tmp_path, lambda manifest: manifest.update(generators="another"))
    with pytest.raises(ArtifactError, match=r"other sources.*export the model again.*fallback=True"):
        attncc.load(other)
    with pytest.warns(RuntimeWarning, match="other sources.*not used"):
        loaded = attncc.load(other, fallback=True)
    attncc.stats(reset=True)
    torch.testing.assert_close(loaded(*inputs(2, 40)), model(*inputs(2, 40)))
    told = attncc.stats()
    assert told.calls == 1 and told.fallbacks == 0


def test_another_machine_is_told_what_it_lacks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Running such code would end the process."""
    poor = dataclasses.replace(detect(), features=frozenset({"sse4.2"}))
    monkeypatch.setattr(machine, "host_without_llvm", lambda: poor)
    lacks = ", ".join(sorted(detect().features - poor.features))
    with pytest.raises(ArtifactError, match=f"for {detect().mcpu} need .*{lacks.split(', ')[0]}.*target="):
        attncc.load(path)


def test_what_a_cpus_name_implies_is_needed_too() -> None:
    """LLVM uses more of a CPU than attncc asks about: AMD's sse4a, which no Intel CPU has."""
    assert {"sse4a", "gfni", "avx512bf16"} <= set(machine.needs(parse("llvm -mcpu=znver5")))
    assert machine.needs(parse("x86-64-v3")) == sorted(
        ["avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "popcnt", "sse4.2"]
    )
    assert machine.missing(detect().arch, machine.needs(detect())) == []
    other = "aarch64" if detect().arch == "x86_64" else "x86_64"
    assert machine.missing(other, []) == [other]


def test_writing_leaves_the_old_file_until_the_new_one_is_whole(
    path: Path, model: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure on the way changes nothing and leaves nothing behind."""
    target = tmp_path / "model.pt2"
    shutil.copy(path, target)

    def fail(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(archive, "_digest", fail)
    with pytest.raises(OSError, match="no space left"):
        attncc.export(model, inputs(2, 9), target)
    assert target.read_bytes() == path.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt2"]
