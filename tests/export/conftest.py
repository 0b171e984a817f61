"""One artifact for all tests here, with open batch and length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export.model import Block, inputs

import attncc
from attncc.export import Exported


@pytest.fixture(scope="session")
def model() -> Block:
    """The model, float32, in evaluation mode."""
    torch.manual_seed(0)
    return Block().eval()


@pytest.fixture(scope="session")
def exported(model: Block, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Its artifact."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = [{0: batch, 1: length}] * 2
    path = tmp_path_factory.mktemp("artifact") / "model.pt2"
    return attncc.export(model, inputs(3, 21), path, dynamic_shapes=shapes)


@pytest.fixture
def path(exported: Exported) -> Path:
    """The file of the artifact."""
    return exported.path
