"""`attncc compile`: a model that a Python factory returns, compiled ahead into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = (
    "[bold]Examples[/]\n\nattncc compile package.models:factory --output model.pt2 --dynamic\n\n"
    "attncc compile model.py:make -o model.pt2 --target x86-64-v4 --target x86-64-v3\n\n"
    "python -c \"import attncc, torch; print(attncc.load('model.pt2')(torch.randn(2, 50, 64)))\""
)


def compile(
    factory: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="Or path/to/file.py:FACTORY.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, by convention .pt2.")],
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Leave every size open that the model does not fix itself.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option("--target", metavar="CPU", help="Compile for this CPU (LLVM's name); repeat it, best first."),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Write nothing where a site is not fused, and fail.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
) -> None:
    """Compile a model ahead, for inference: one file that `attncc.load` runs without TVM and without a compiler.

    The factory is called without arguments and returns (model, inputs) or (model, inputs, keyword inputs). Sizes are
    fixed to those of the inputs unless --dynamic is given; attncc.export in Python takes them one by one. Building
    needs a linker: binutils or lld; for other architectures pip install 'attncc\\[cross]'.
    """
    import attncc
    from attncc.cli._console import progress, show, show_json
    from attncc.cli._factory import call

    with progress(8) as say:
        say(f"loading {factory}")
        model, args, kwargs = call(factory)
        shapes = "auto" if dynamic else None
        targets = target or "native"
        exported = attncc.export(
            model, args, output, kwargs, dynamic_shapes=shapes, target=targets, strict=strict, say=say
        )
    if json:
        show_json(exported.to_json())
    else:
        show(exported)
