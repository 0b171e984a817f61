"""The `attncc` command, one file a command. They import what they need when they run, so that `--help` is instant."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from attncc.cli import _cuda, bench, cache, compile, db, demo, device, explain, info, tune


def _show_version(wanted: bool) -> None:
    if wanted:
        print(metadata.version("attncc"))
        raise typer.Exit


app = typer.Typer(
    name="attncc",
    epilog="An error is one line; ATTNCC_TRACEBACK=1 shows where it came from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """A graph compiler for attention: recognises what a PyTorch model means, and runs it as fused TVM kernels."""


app.command("demo", epilog=demo.EXAMPLES)(demo.demo)
app.command("explain", epilog=explain.EXAMPLES)(explain.explain)
app.command("compile", epilog=compile.EXAMPLES)(compile.compile)
app.command("info", epilog=info.EXAMPLES)(info.info)
app.command("bench", epilog=bench.EXAMPLES)(bench.bench)
app.command("tune", epilog=tune.EXAMPLES)(tune.tune)
app.command("cuda-pack", epilog=_cuda.EXAMPLES)(_cuda.cuda_pack)
app.add_typer(db.app, name="db")
app.add_typer(cache.app, name="cache")
app.add_typer(device.app, name="device")


def main() -> None:
    """Entry point of the `attncc` script: runs a command; an error is one line on stderr and a non-zero exit status."""
    try:
        status = app(standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if os.environ.get("ATTNCC_TRACEBACK", "0") not in ("", "0"):
            raise
        if message := _one_line(error):
            print(f"attncc: error: {message}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    sys.exit(status if isinstance(status, int) else 0)


def _one_line(error: Exception) -> str:
    """The message of `error`: empty where help was shown instead. Usage errors, whose class differs between versions
    of Typer, are known by their method."""
    if hasattr(error, "format_message"):
        message = error.format_message().rstrip(".")
        return f"{message}; try --help" if message else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
