"""What a compilation leaves to read: `TORCH_LOGS="attncc"` or "+attncc", and artifacts that `tlparse` shows.

`TORCH_LOGS` takes the name of any package, also before it is imported, and sets the level of its logger: INFO gives a
line for each site, DEBUG the IR after every pass that changed it. `TORCH_TRACE=folder` records the same for `tlparse`,
as artifacts `attncc_ir` and `attncc_sites` of each compiled graph.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from torch._logging import trace_structured

from attncc.rewrite import Found, History

log = logging.getLogger("attncc")


def record(history: History, found: list[Found]) -> None:
    """Log one graph: the steps of its IR, and what was found in it."""
    for step, graph in history:
        log.debug("IR after %s:\n%s", step, graph)
    for site in found:
        place = site.location or "an attention"
        if site.fused:
            log.info("%s: fused: %s", place, site.spec)
        else:
            log.info("%s: not fused: %s", place, site.reason)
    _artifact("attncc_ir", "string", lambda: "\n\n".join(str(graph) for _, graph in history))
    _artifact("attncc_sites", "json", lambda: json.dumps([_plain(site) for site in found], indent=2))


def _plain(site: Found) -> dict[str, object]:
    spec = json.loads(site.spec.json) if site.spec is not None else None
    names = ("fused", "location", "source", "reason", "sizes")
    return {name: getattr(site, name) for name in names} | {"spec": spec}


def _artifact(name: str, encoding: str, payload: Callable[[], str]) -> None:
    trace_structured("artifact", metadata_fn=lambda: {"name": name, "encoding": encoding}, payload_fn=payload)
