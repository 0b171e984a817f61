"""`attncc device`: machines that kernels are tuned on from elsewhere, over TVM's RPC."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from attncc.tuning.tracker import Address

EXAMPLES = (
    "[bold]Examples[/]\n\nattncc device tracker\n\nattncc device serve --tracker 127.0.0.1:9190 --key zen4\n\n"
    "attncc device list --tracker 127.0.0.1:9190\n\nattncc tune --suite common --tracker 127.0.0.1:9190 --key zen4"
)
app = typer.Typer(
    help="Tune on other machines: run a tracker, serve this machine under a key, list who serves.",
    no_args_is_help=True,
    epilog=EXAMPLES,
)
_TrackerOption = Annotated[str, typer.Option("--tracker", help="The tracker's host:port.")]
_HostOption = Annotated[str, typer.Option("--host", help="Address to listen on. The default is this machine alone.")]
_AllowOption = Annotated[
    bool,
    typer.Option(
        "--allow-remote-code-execution-from-network",
        help="Let --host be an address that other machines reach. Whoever reaches it runs any code on this machine.",
    ),
]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("tracker", epilog="[bold]Examples[/]\n\nattncc device tracker\n\nattncc device tracker --port 9200")
def tracker(
    host: _HostOption = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 9190,
    exposed: _AllowOption = False,
    json: _JsonOption = False,
) -> None:
    """Run TVM's RPC tracker, with which devices register and where tuners ask for one. Ends with Ctrl-C."""
    from attncc.tuning.serve import run_tracker

    def ready(where: Address) -> None:
        _announce(
            json, f"tracker on {where}; devices join with: attncc device serve --tracker {where} --key KEY", where
        )

    run_tracker(host, port, ready, exposed=exposed)


@app.command(
    "serve",
    epilog="[bold]Examples[/]\n\nattncc device serve --tracker 127.0.0.1:9190 --key zen4\n\n"
    "attncc device serve --tracker 10.0.0.5:9190 --key zen4 --host 10.0.0.7 --allow-remote-code-execution-from-network"
    "\n\nssh -L 9190:127.0.0.1:9190 -L 9090:127.0.0.1:9090 user@device   [dim]instead of the line above: tracker and "
    "device both run on the device, and the tuner reaches them as 127.0.0.1[/]",
)
def serve(
    tracker: _TrackerOption,
    key: Annotated[str, typer.Option("--key", help="Name of this kind of machine: equal machines share a key.")],
    host: _HostOption = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on. Default: the first free one from 9090 on.")
    ] = None,
    target: Annotated[
        str, typer.Option("--target", help="What to compile for, as x86-64-v3. Default: this machine, detected.")
    ] = "native",
    exposed: _AllowOption = False,
    json: _JsonOption = False,
) -> None:
    """Serve this machine: tuners send it kernels, which it checks and times. Ends with Ctrl-C."""
    from attncc.target import parse
    from attncc.tuning.serve import run_device
    from attncc.tuning.tracker import Address

    chosen = parse(target)

    def ready(where: Address) -> None:
        _announce(json, f"serving {chosen} as {key!r} on {where}, tracker {tracker}", where)

    run_device(Address.parse(tracker), key, chosen, host, port, ready, exposed=exposed)


@app.command("list", epilog="[bold]Examples[/]\n\nattncc device list --tracker 127.0.0.1:9190")
def list_devices(
    tracker: _TrackerOption,
    key: Annotated[str | None, typer.Option("--key", help="Only devices under this key.")] = None,
    json: _JsonOption = False,
) -> None:
    """List the registered devices and what they are. A device that is measuring does not answer meanwhile."""
    import json as text

    from attncc._rich import table
    from attncc.cli._console import progress, show, show_json
    from attncc.tuning.survey import survey
    from attncc.tuning.tracker import Address

    with progress(1) as say:
        say("asking the devices")
        found = survey(Address.parse(tracker), key)
    if json:
        show_json(text.dumps([answer.data for answer in found], indent=2))
        return
    rows = table(
        f"{len(found)} devices at tracker {tracker}", "key", "address", "machine", "threads", "attncc", "state"
    )
    for answer in found:
        what = answer.description
        facts = ("", "", "") if what is None else (str(what.target), str(what.threads), what.versions.attncc)
        rows.add_row(answer.device.key, str(answer.device.address), *facts, answer.state)
    show(rows)


def _announce(as_json: bool, text: str, where: Address) -> None:
    """One line that says where a server listens, as soon as it does."""
    import json

    print(json.dumps({"host": where.host, "port": where.port}) if as_json else text, flush=True)
