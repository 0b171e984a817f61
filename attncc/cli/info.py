"""`attncc info`: versions, target and kernel families, for people and for bug reports."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = "[bold]Examples[/]\n\nattncc info\n\nattncc info --measure\n\nattncc info --json"


def info(
    measure: Annotated[bool, typer.Option(help="Also measure multiply-add peak and read bandwidth.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show versions, the detected target, which kernel families run here and why others do not."""
    from attncc.bench.peak import STEPS
    from attncc.cli._console import progress, show, show_json
    from attncc.info import info as collect

    with progress(1 + STEPS * measure) as say:
        say("asking TVM and torch")
        found = collect(measure=measure, say=say)
    if json:
        show_json(found.to_json())
    else:
        show(found)
