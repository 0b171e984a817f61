"""`attncc demo`: real text through a real pretrained model, three ways side by side."""

from __future__ import annotations

from typing import Annotated

import typer

EXAMPLES = "[bold]Examples[/]\n\nattncc demo\n\nattncc demo --json > demo.json\n\nattncc demo --turns 21"


def demo(
    turns: Annotated[int, typer.Option(min=1, help="Interleaved turns that a median is taken of.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.0, help="Rough duration of one turn of one engine.")] = 0.25,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Embed real paragraphs with MiniLM as eager PyTorch, PyTorch SDPA and compiled by attncc.

    Shows every attention site and the kernel that runs it, the difference from float64, a small search, and times.
    Needs the extra 'demo' and no network; exit status 1 where a site is not fused, the results of the engines differ,
    or attncc is farther from float64 than it may be.
    """
    from attncc import demo as main_job
    from attncc.cli._console import progress, show, show_json

    with progress(main_job.steps(turns)) as say:
        result = main_job.run(turns=turns, seconds=seconds, say=say)
    if json:
        show_json(result.to_json())
    else:
        show(result)
    if result.problems:
        raise typer.Exit(1)
