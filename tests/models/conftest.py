"""What the tests of whole models share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from attncc import backend
from attncc.rewrite import Found

pytest.importorskip("transformers", reason="whole models need the extra `demo`")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Found]:
    """Every attention that `attncc.compile` and `torch.compile(backend="attncc")` meet from here on."""
    sites: list[Found] = []
    compile_graph = backend.compile_graph

    def observe(found: list[Found], *_: Any) -> None:
        sites.extend(found)

    monkeypatch.setattr(
        backend, "compile_graph", lambda gm, inputs, options, _=None: compile_graph(gm, inputs, options, observe)
    )
    return sites
