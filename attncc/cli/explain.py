"""`attncc explain`: what attncc makes of the attention in a model that a Python factory returns."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = (
    "[bold]Examples[/]\n\nattncc explain package.models:factory\n\nattncc explain examples/bilinear.py:factory\n\n"
    "attncc explain --strict --json model.py:make"
)


def explain(
    factory: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="Or path/to/file.py:FACTORY.")],
    strict: Annotated[bool, typer.Option("--strict", help="Exit status 1 where a site is not fused.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Explain every attention site of a model: what was recognised, which kernel runs it, or why it was not fused.

    The factory is called without arguments and returns (model, inputs), or (model, inputs, keyword inputs). Inputs are
    a tensor, a tuple or list of arguments, or a dict of keyword arguments.
    """
    import attncc
    from attncc.cli._console import progress, show, show_json
    from attncc.cli._factory import call

    with progress(2) as say:
        say(f"loading {factory}")
        model, args, kwargs = call(factory)
        say("compiling")
        report = attncc.explain(model, *args, **kwargs)
    if json:
        show_json(report.to_json())
    else:
        show(report)
    if strict and not all(site.fused for site in report.sites):
        raise typer.Exit(1)
