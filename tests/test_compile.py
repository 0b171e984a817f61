"""The three ways in, used as a user would: same numbers, gradients right, models kept whole."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sampling import one_in
from torch import Tensor, nn

import attncc
from attncc.backend import UnfusedAttention


class Attention(nn.Module):
    """Multi-head self-attention, spelled out, causal, with dropout on its output."""

    def __init__(self, dim: int = 32, heads: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (d // self.heads) ** 0.5
        mask = torch.ones(s, s, dtype=torch.bool).tril()
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
        y = (weights @ v).transpose(1, 2).reshape(b, s, d)
        return F.dropout(self.out(y), self.dropout, self.training)


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def calls() -> int:
    """Kernel calls so far."""
    return attncc.stats().calls


def check(compiled: Callable[..., Any], model: Callable[..., Any], *inputs: Any) -> None:
    """One call of each: equal to float32 accuracy, and the compiled one ran a kernel."""
    before = calls()
    torch.testing.assert_close(compiled(*inputs), model(*inputs), rtol=1e-5, atol=1e-5)
    assert calls() > before


def test_a_module_through_compile() -> None:
    model = Attention().eval()
    check(attncc.compile(model), model, torch.randn(2, 17, 32))


def test_a_function_through_compile() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT * 0.25, -1) @ v

    check(attncc.compile(fn), fn, *(torch.randn(2, 3, 19, 16) for _ in range(3)))


def test_a_constant_tensor_made_in_the_graph() -> None:
    """make_fx gives it a fake of a mode of its own, which must not meet those of the inputs."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT / torch.tensor(3.0), -1) @ v

    check(attncc.compile(fn), fn, *(torch.randn(2, 3, 19, 16) for _ in range(3)))


def test_the_torch_compile_backend_by_name() -> None:
    assert "attncc" in torch.compiler.list_backends()
    model = Attention().eval()
    check(torch.compile(model, backend="attncc", options={"strict": True}), model, torch.randn(2, 17, 32))


@pytest.mark.parametrize("mode", ["default", "lite", "reduce-overhead"])
def test_modes_of_torch_compile(mode: str) -> None:
    model = Attention().eval()
    check(torch.compile(model, backend="attncc", mode=mode), model, torch.randn(1, 9, 32))


def test_an_unknown_backend_option_is_rejected_with_the_nearest_name() -> None:
    with pytest.raises(Exception, match="did you mean 'strict'"):
        torch.compile(Attention(), backend="attncc", options={"strikt": True})(torch.randn(1, 4, 32))


def test_an_exported_program() -> None:
    model = Attention().eval()
    x = torch.randn(2, 17, 32)
    check(attncc.compile(torch.export.export(model, (x,))), model, x)


def test_lengths_and_batches_change_without_a_rebuild() -> None:
    """Once each family that lengths choose has its kernel: the short one, and the one for longer rows."""
    model = Attention().eval()
    compiled = attncc.compile(model, dynamic=True)
    for length in (40, 150):
        check(compiled, model, torch.randn(2, length, 32))
    built = attncc.stats().compiles
    for batch, length in [(3, 41), (2, 64), (5, 33), (4, 151), (2, 200)]:
        check(compiled, model, torch.randn(batch, length, 32))
    assert attncc.stats().compiles == built


def test_gradients_equal_eager_pytorch() -> None:
    model = Attention()
    x = torch.randn(2, 11, 32)
    grads = []
    for run in (model, attncc.compile(model)):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        grads.append([leaf.grad, *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-5)


def test_dropout_on_the_weights_in_training_is_left_to_pytorch() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.dropout(torch.softmax(q @ k.mT, -1), 0.5, True) @ v

    q, k, v = (torch.randn(1, 2, 8, 8) for _ in range(3))
    report = attncc.explain(fn, q, k, v)
    assert [site.fused for site in report.sites] == [False]
    assert "dropout" in report.sites[0].reason
    compiled = attncc.compile(fn)
    compiled(q, k, v)
    torch.manual_seed(5)
    expected = fn(q, k, v)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled(q, k, v), expected)


@pytest.mark.parametrize("grad", one_in(2, [True, False]))
def test_inner_inductor(grad: bool) -> None:
    model = Attention().eval()
    x = torch.randn(2, 17, 32, requires_grad=grad)
    with torch.set_grad_enabled(grad):
        check(attncc.compile(model, inner="inductor"), model, x)


@pytest.mark.parametrize("dim", one_in(2, [-2, 0]))
def test_inductor_does_not_fuse_again_what_was_refused(dim: int) -> None:
    """Inductor's own SDPA patterns match this and compute another function."""

    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.transpose(-2, -1) / 4.0, dim) @ v

    inputs = [torch.randn(2, 4, 32, 16) for _ in range(3)]
    assert not attncc.explain(fn, *inputs).fused
    torch.testing.assert_close(attncc.compile(fn, inner="inductor")(*inputs), fn(*inputs), rtol=1e-4, atol=1e-5)


def test_strict_raises_with_every_reason() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, -2) @ v

    with pytest.raises(Exception, match="unfused under strict") as caught:
        attncc.compile(fn, strict=True)(*(torch.randn(1, 2, 8, 8) for _ in range(3)))
    assert isinstance(caught.value, UnfusedAttention) or UnfusedAttention.__name__ in str(caught.value)


def test_a_compiled_module_shares_everything_with_the_original() -> None:
    model = Attention()
    compiled = attncc.compile(model)
    assert isinstance(compiled, Attention)
    assert list(compiled.state_dict()) == list(model.state_dict())
    compiled.eval()
    assert not model.training
    model.heads = 2
    check(compiled, model, torch.randn(1, 8, 32))


def test_copies_and_pickles_stay_compiled_and_apart() -> None:
    model = Attention().eval()
    compiled = attncc.compile(model)
    x = torch.randn(1, 8, 32)
    for other in (copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        check(other, model, x)
        assert other.qkv.weight.data_ptr() != model.qkv.weight.data_ptr()
    buffer = io.BytesIO()
    torch.save(compiled.state_dict(), buffer)
    buffer.seek(0)
    model.load_state_dict(torch.load(buffer))


def test_disable_switch_runs_pytorch_alone() -> None:
    code = (
        "import torch, attncc; fn = lambda q: torch.softmax(q @ q.mT, -1) @ q; x = torch.randn(1, 2, 8, 8);"
        "a = attncc.compile(fn); b = torch.compile(fn, backend='attncc');"
        "assert a is fn; assert torch.equal(a(x), b(x)); assert attncc.stats().calls == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(ATTNCC_DISABLE="1"), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_importing_attncc_imports_neither_tvm_nor_transformers() -> None:
    code = "import sys, attncc; assert not {'tvm', 'tvm_ffi', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def environment(**more: str) -> dict[str, str]:
    """This process's environment with additions."""
    import os

    return {**os.environ, **more}


def test_warmup_builds_what_later_calls_need() -> None:
    model = Attention().eval()
    compiled = attncc.compile(model, dynamic=True)
    attncc.warmup(compiled, [(torch.randn(2, 24, 32),)])
    built = attncc.stats().compiles
    check(compiled, model, torch.randn(2, 31, 32))
    assert attncc.stats().compiles == built


@pytest.mark.parametrize("model", [3, "bert", None])
def test_what_cannot_be_compiled_is_rejected(model: Any) -> None:
    with pytest.raises(TypeError, match=r"takes an nn\.Module"):
        attncc.compile(model)
    with pytest.raises(ValueError, match="did you mean 'inner'"):
        attncc.compile(Attention(), iner="eager")


def test_autocast_and_inference_mode() -> None:
    model = Attention().eval()
    compiled = attncc.compile(model)
    x = torch.randn(2, 16, 32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), model(x), rtol=2e-2, atol=2e-2)
