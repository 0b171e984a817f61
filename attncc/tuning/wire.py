"""A task as text and bytes, to be measured in another process or on another machine."""

from __future__ import annotations

import io
import json
from dataclasses import asdict

import torch

from attncc.schedules import Problem
from attncc.spec import AttentionSpec
from attncc.target import Target
from attncc.tuning.sample import Sample
from attncc.tuning.task import Task


def packed(task: Task) -> tuple[str, bytes]:
    """What `unpacked` makes a task of: JSON, and the tensors that its operands must hold."""
    sample = task.operands
    data = {
        "spec": task.spec.json,
        "family": task.family,
        "problem": asdict(task.problem),
        "strides": sample.strides,
        "layout": sample.layout,
        "scalars": [float(s).hex() for s in sample.scalars],
        "integers": sample.integers,
    }
    tensors = io.BytesIO()
    torch.save(list(sample.extras), tensors)
    return json.dumps(data), tensors.getvalue()


def unpacked(text: str, tensors: bytes, target: Target) -> Task:
    """The task that was packed, for `target`. Raises ValueError where it is none for such a target."""
    data = json.loads(text)
    extras = torch.load(io.BytesIO(tensors), weights_only=True)  # without pickle's power to call anything
    strides = tuple(tuple(s) for s in data["strides"])
    scalars = tuple(map(float.fromhex, data["scalars"]))
    sample = Sample(strides, data["layout"], tuple(extras), scalars, tuple(data["integers"]))
    spec = AttentionSpec.from_json(data["spec"])
    return Task(spec, data["family"], Problem(**data["problem"]), target, sample=sample)
