"""Tasks: recorded from a model's calls, read from files, the same one only once."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import attncc
from attncc.bench.cases import Case
from attncc.target import detect
from attncc.tuning.sample import generated, operands_of
from attncc.tuning.task import distinct
from attncc.tuning.workload import of_cases, of_model, read_cases


class Layers(torch.nn.Module):
    """Three layers of the same attention, a causal one, and one that is no attention of kernels with decisions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = x + F.scaled_dot_product_attention(x, x, x)
        return x + F.scaled_dot_product_attention(x, x, x, is_causal=True)


def test_the_attention_of_a_model_becomes_tasks_with_their_calls() -> None:
    tasks = of_model(Layers().eval(), [torch.randn(1, 2, 150, 16)], {}, detect())
    assert sorted(task.calls for task in tasks) == [1, 3]
    assert {str(task.bucket).rsplit(" ", 1)[0] for task in tasks} == {"h2 q256 k256"}
    masked = [task for task in tasks if task.spec.mask is not None]
    assert len(masked) == 1 and masked[0].family.startswith("cpu.")


def test_a_sample_keeps_strides_and_what_masks_hold() -> None:
    keep = torch.rand(40, 40) > 0.5

    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    q, k, v = (torch.randn(2, 40, 3, 8).transpose(1, 2) for _ in range(3))
    (task,) = of_model(model, [q, k, v, keep], {}, detect())
    made = operands_of(task.spec, task.problem, task.operands)
    assert [t.stride() for t in made[:3]] == [t.stride() for t in (q, k, v)]
    assert torch.equal(made[3][0].view(keep.shape), keep) and task.operands.layout == "bshd"
    with pytest.raises(ValueError, match="tune it from the model"):
        generated(task.spec, task.problem)


def test_cases_of_a_file_are_tasks_and_buckets_are_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "shapes.json"
    small = {"heads": 2, "kv_heads": 2, "q_len": 130, "kv_len": 130, "head_dim": 16}
    file.write_text(json.dumps([small, small | {"q_len": 140, "kv_len": 200}]))
    tasks = of_cases(read_cases(file), detect())
    assert len(tasks) == 1 and tasks[0].calls == 2 and "H2" in str(tasks[0])
    assert distinct(tasks + tasks)[0].calls == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not a list of cases"),
        ('[{"haeds": 2}]', "there is no haeds"),
        ('[{"heads": 0}]', "heads=0"),
    ],
)
def test_a_file_that_is_no_workload_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "shapes.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cases(file)


def test_recording_leaves_no_trace_in_later_calls() -> None:
    of_cases([Case(1, 2, 2, 64, 64, 8)], detect())
    q = torch.randn(1, 2, 64, 8)
    attncc.stats(reset=True)
    attncc.attention(q, q, q)
    assert attncc.stats().calls == 1
