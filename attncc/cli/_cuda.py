"""`attncc bench --device cuda` and `attncc cuda-pack`."""

from __future__ import annotations

import json as text
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attncc.bench.cuda.run import Peaks, Result

EXAMPLES = "[bold]Examples[/]\n\nattncc cuda-pack kernels; # here\n\nattncc bench --device cuda --pack kernels  # there"


def cuda_pack(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")],
    arch: Annotated[str, typer.Option(help="The GPU's architecture, as nvcc calls it.")] = "sm_90a",
    quick: Annotated[bool, typer.Option("--quick", help="A sample of the cases.")] = False,
) -> None:
    """Generate the kernels of `attncc bench --device cuda`, for a machine that has a GPU, but no TVM."""
    from attncc.bench.cuda.cases import cases
    from attncc.bench.cuda.kernels import wanted
    from attncc.cli._console import progress
    from attncc.runtime.cuda import devices, pack
    from attncc.target import Target

    target = Target("cuda", arch, devices.TRIPLE, frozenset(), 0, 0, 0, 0)
    kernels = wanted(cases(quick), target)
    size = 0
    with progress(len(kernels)) as say:
        for (spec, _, family, _), count in pack.write(folder, kernels):
            size += count
            say(f"{family.name} {spec.dtype} D={spec.head_dim}")
    print(f"{len(kernels)} kernels, {size / 1e6:.1f} MB, in {folder}")


def run_cuda(folder: Path | None, only: str | None, quick: bool, json: bool, save: Path | None) -> None:
    """Measure every case on torch's current GPU, with kernels from the pack in `folder` where one is given.

    Raises RuntimeError without a GPU.
    """
    import torch

    from attncc.bench.cuda import run
    from attncc.bench.cuda.cases import cases
    from attncc.cli._console import show, show_json
    from attncc.runtime.cuda import pack

    if not torch.cuda.is_available():
        raise RuntimeError("--device cuda needs an NVIDIA GPU and a torch that is built for it")
    if folder is not None:
        os.environ.setdefault("ATTNCC_CACHE_DIR", str(folder / "cache"))
        pack.use(folder)
    measured = run.peaks()
    results = []
    if not json:
        print(f"{measured.device}: product {measured.tflops:.0f} TFLOP/s, copy {measured.gbs:.0f} GB/s")
    groups = None if only is None else {name.strip() for name in only.split(",")}
    for case in cases(quick):
        if groups is None or case.group in groups:
            results.append(run.run(case))
            if not json:
                show(run.report(results[-1], measured))
            if save is not None:
                save.write_text(_json(measured, results))
    if json:
        show_json(_json(measured, results))
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _json(measured: Peaks, results: list[Result]) -> str:
    from attncc.bench.cuda import run

    entries = [run.to_json(result, measured) for result in results]
    return text.dumps({"peaks": vars(measured), "results": entries}, indent=2)
