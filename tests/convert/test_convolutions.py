"""Convolutions that see one position are products; all others are left as they are."""

from __future__ import annotations

import pytest
import torch
from capture import assert_same, capture
from torch import Tensor, nn

B, C, S, N = 2, 6, 35, 5


class Pooling(nn.Module):
    """N queries that are a convolution's channels pool over all positions."""

    def __init__(self, scores: nn.Module) -> None:
        super().__init__()
        self.scores = scores
        self.values = nn.Conv1d(C, 8, 1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        values = self.values(x.flatten(2)).mT
        return torch.einsum("bns,bse->bne", self.scores(x).flatten(2).softmax(-1), values)


def image(dims: int) -> Tensor:
    return torch.randn(B, C, *((S,) if dims == 1 else (5, 7)), generator=torch.Generator().manual_seed(dims))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv2d])
def test_scores_by_a_convolution_over_one_position(convolution: type[nn.Module], bias: bool, grad: bool) -> None:
    dims = 1 if convolution is nn.Conv1d else 2
    model, x = Pooling(convolution(C, N, 1, bias=bias)), image(dims)
    seen = capture(model, (x,), grad=grad)
    (found,) = seen.found
    assert found.fused and found.spec is not None
    assert found.spec.head_dim == C and len(found.spec.extras) == bias
    assert not [n for g in seen.graphs for n in g.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    exact = model.double()(x.double())
    assert_same(seen.result, exact.float())


def test_dynamic_sizes() -> None:
    model, x = Pooling(nn.Conv1d(C, N, 1)), image(1)
    shorter = x[:, :, :29].contiguous()
    seen = capture(model, (x,), again=(shorter,), dynamic=True)
    assert len(seen.graphs) == len(seen.fused) == 1
    assert_same(seen.result, model(x))
    assert_same(seen.again, model(shorter))


@pytest.mark.parametrize(
    "scores",
    [
        nn.Conv2d(C, 6, 1, groups=2),
        nn.Conv2d(C, N, 1, padding=1),
        nn.Conv2d(C, N, 1, stride=2),
        nn.Conv2d(C, N, 3, padding=1),
        nn.ConvTranspose2d(C, N, 1),
    ],
    ids=["groups", "padding", "stride", "kernel", "transposed"],
)
def test_others_are_left_alone(scores: nn.Module) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = scores

        def forward(self, x: Tensor) -> Tensor:
            s = self.scores(x).flatten(2)
            return s.softmax(-1) @ x.flatten(2).mT.repeat(1, 2, 1)[:, : s.shape[-1]]

    model, x = Whole(), image(2)
    seen = capture(model, (x,))
    assert not seen.fused
    assert_same(seen.result, model(x))


class Biased(nn.Module):
    """Attention with a bias that a projection of pairs gives."""

    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, q: Tensor, k: Tensor, v: Tensor, pairs: Tensor) -> Tensor:
        if isinstance(self.projection, nn.Linear):
            bias = self.projection(pairs.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            bias = self.projection(pairs)
        return (q @ k.mT + bias).softmax(-1) @ v


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("projection", [nn.Conv2d, nn.Linear])
def test_a_bias_of_the_scores_that_is_projected(projection: type[nn.Module], bias: bool, grad: bool) -> None:
    model = Biased(projection(C, N, **({"kernel_size": 1} if projection is nn.Conv2d else {}), bias=bias))
    q, k, v = (torch.randn(B, N, S, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    args = q, k, v, torch.randn(B, C, S, S)
    seen = capture(model, args, grad=grad)
    assert len(seen.fused) == len(seen.found) == 1
    assert_same(seen.result, model(*args))
    if grad:
        actual = torch.autograd.grad(seen.result.square().sum(), [*model.parameters()])
        expected = torch.autograd.grad(model(*args).square().sum(), [*model.parameters()])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("projection", [nn.Conv2d(C, N, 1), nn.Linear(C, N)], ids=["convolution", "linear"])
def test_a_projected_bias_under_autocast(projection: nn.Module) -> None:
    model = Biased(projection)
    q, k, v = (torch.randn(B, N, S, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    args = q, k, v, torch.randn(B, C, S, S)
    with torch.autocast("cpu", torch.bfloat16):
        seen = capture(model, args)
        assert len(seen.fused) == len(seen.found) == 1
        assert_same(seen.result, model(*args))


def test_a_projected_bias_without_gradients_is_left_without() -> None:
    projection = nn.Conv2d(C, N, 1)

    def attend(q: Tensor, k: Tensor, v: Tensor, pairs: Tensor) -> Tensor:
        with torch.no_grad():
            bias = projection(pairs)
        return (q @ k.mT + bias).softmax(-1) @ v

    q, k, v = (torch.randn(B, N, S, 8, requires_grad=True) for _ in range(3))
    pairs = torch.randn(B, C, S, S)
    result = capture(attend, (q, k, v, pairs), grad=True).result
    assert_same(result, attend(q, k, v, pairs))
    result.sum().backward()
    assert q.grad is not None and projection.weight.grad is None


def test_no_attention_leaves_the_graph_as_it_is() -> None:
    model = nn.Sequential(nn.Conv2d(C, N, 1), nn.ReLU(), nn.Conv2d(N, C, 1, bias=False))
    seen = capture(model, (image(2),))
    assert not seen.found
    assert [str(n.target) for g in seen.graphs for n in g.graph.nodes if n.op == "call_function"] == [
        "aten.conv2d.default", "aten.relu.default", "aten.conv2d.default",
    ]  # fmt: skip
    assert torch.equal(seen.result, model(image(2)))
