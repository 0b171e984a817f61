"""`attncc.load`: an artifact as a module that can be called, without TVM and without a compiler."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from attncc.export import archive, machine
from attncc.export.archive import ArtifactError, Manifest
from attncc.runtime import ahead, build, dispatch, op


class Loaded(nn.Module):
    """A loaded artifact: called with the arguments that the model was exported with, for inference only."""

    def __init__(self, program: nn.Module, manifest: Manifest, library: ahead.Library | None) -> None:
        super().__init__()
        self.program = program
        self.manifest = manifest
        """What the artifact holds, and what it was made by."""
        self._library = library  # its kernels are used for as long as it is referred to
        self.training = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; no gradient is recorded.

        Raises RuntimeError for inputs that require one, and AssertionError or ValueError for sizes that the program was
        not exported for.
        """
        if torch.is_grad_enabled():
            if any(isinstance(x, torch.Tensor) and x.requires_grad for x in pytree.tree_leaves((args, kwargs))):
                raise RuntimeError(
                    "an artifact of attncc is for inference, and an input requires a gradient: call it under "
                    "torch.no_grad(), or train the model itself with attncc.compile"
                )
            with torch.no_grad():
                return self.program(*args, **kwargs)
        return self.program(*args, **kwargs)

    def train(self, mode: bool = True) -> Loaded:
        """Raise ValueError where training is asked for."""
        if mode:
            raise ValueError("an artifact of attncc is for inference; train the model itself, then export it again")
        return self


def load(path: str | os.PathLike[str], *, fallback: bool = False) -> Loaded:
    """The model of the artifact `path`, which `attncc.export` or `attncc compile` wrote.

    Of an artifact with kernels for several targets, the first that this machine can run are used. `fallback` says what
    happens where there are none, or where this attncc would call them in another way: False raises ArtifactError; True
    gives a warning, and the attention is compiled here where TVM is installed, else run as PyTorch runs it.

    An artifact holds machine code and pickled objects: load only what you would run as a program. Raises ArtifactError
    for a file that is no artifact or is damaged, OSError where there is none.
    """
    path = Path(path)
    manifest, libraries = archive.read(path)
    library, problem = _library(manifest, libraries)
    if library is None:
        message = f"attncc.load: the kernels of {path} are not for this machine: {problem}"
        if not fallback:
            raise ArtifactError(f"{message}. Pass fallback=True to run without them.")
        warnings.warn(f"{message}. They are not used.", RuntimeWarning, stacklevel=2)
    program = _program(path, manifest)
    if library is not None:
        ahead.provide(library)
        dispatch.forget_plans()
    return Loaded(program, manifest, library)


def _library(manifest: Manifest, libraries: Mapping[str, bytes]) -> tuple[ahead.Library | None, str]:
    """The first library that can be used here, loaded; else None, and why."""
    from attncc.export.library import LoadedLibrary

    if not manifest.libraries:
        return _Empty(), ""
    if (manifest.abi, manifest.generators) != (build.ABI, build.code_digest("cpu")):
        theirs = manifest.versions.get("attncc")
        return None, f"they were made by attncc {theirs} from other sources than this attncc's; export the model again"
    problems = []
    for each in manifest.libraries:
        lacks = machine.missing(each.arch, each.needs)
        if not lacks:
            return LoadedLibrary(each, libraries[each.record]), ""
        problems.append(f"those for {each.mcpu} need {', '.join(lacks)}")
    what = "; ".join(problems)
    return None, f"{what}. It is {machine.describe()}; export with target=[...] naming a CPU that it can stand for"


class _Empty:
    """Of a program without attention."""

    def kernel(self, *call: Any) -> None:
        """None."""


def _program(path: Path, manifest: Manifest) -> nn.Module:
    """The program of an artifact as a module. Raises ArtifactError where this torch does not read it."""
    try:
        with open(path, "rb") as source:  # torch would look at the ending of a path
            module: Any = torch.export.load(source).module()
    except Exception as error:  # whatever another version's format makes torch raise
        theirs = manifest.versions.get("torch")
        hint = "" if theirs == torch.__version__ else f" It was written by torch {theirs}; export it again here."
        raise ArtifactError(
            f"attncc.load: torch {torch.__version__} does not load {path}: {type(error).__name__}: {error}.{hint}"
        ) from error
    for graph in [m for m in module.modules() if isinstance(m, torch.fx.GraphModule)]:
        attentions = [node for node in graph.graph.nodes if node.target in op.DIRECT]
        for node in attentions:
            node.target = op.DIRECT[node.target]
        if attentions:
            graph.recompile()
    result: nn.Module = module.requires_grad_(False)
    return result
