"""The torch operators `attncc::attention` and `attncc::attention_outputs`: two for all specs, so that they exist in
every process that imports attncc.

    attention(Tensor q, Tensor k, Tensor v, Tensor[] extras, float[] scalars, SymInt[] integers, str spec, str layout)
    attention_outputs(the same) -> Tensor[]

q [B, H, Sq, D], k [B, G, Skv, D], v [B, G, Skv, E] give [B, H, Sq, E]; `spec` is an AttentionSpec's JSON and `layout`
("bhsd" or "bshd") the order in which the result is contiguous. `attention_outputs` gives all that the spec names, that
result first. CPU and CUDA tensors run kernels; other devices run the same attention by PyTorch's operators. Fake
tensors, autograd (recomputed through those operators), `torch.func` transforms, Inductor and export work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attncc.runtime import check, dispatch, eager, plan, stats
from attncc.runtime.operands import Call

ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor[] extras, float[] scalars, SymInt[] integers, str spec, str layout"
_library = torch.library.Library("attncc", "DEF")
_PLAIN = frozenset((Tensor, torch.nn.Parameter))
# Looked up once: these stand in the path of every call.
_modes = torch._C._len_torch_dispatch_stack
_transformed = torch._C._are_functorch_transforms_active
_profiled = torch.autograd._profiler_enabled
_grad_enabled, _any_requires_grad = torch.is_grad_enabled, torch._C._any_requires_grad


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Tensor:
    """Call the operator; straight to the kernel where nothing of torch's dispatcher could have a say in it."""
    if not torch.compiler.is_compiling():
        run = unobserved((q, k, v, *extras))
        if run is not None:
            return run(q, k, v, extras, scalars, integers, spec, layout)[0]
    return _dispatched(_one, q, k, v, extras, scalars, integers, spec, layout)[0]


def attention_outputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Sequence[Tensor]:
    """The same for all outputs of the spec, in its order."""
    if not torch.compiler.is_compiling():
        run = unobserved((q, k, v, *extras))
        if run is not None:
            return run(q, k, v, extras, scalars, integers, spec, layout)
    return _dispatched(_all, q, k, v, extras, scalars, integers, spec, layout)


def unobserved(tensors: tuple[Tensor, ...]) -> Callable[..., Sequence[Tensor]] | None:
    """What runs a call in which nothing of torch's dispatcher could have a say; None for all others."""
    run = _direct(tensors)
    # A call that skips the dispatcher would be missing from a profile.
    observed = run is None or (_grad_enabled() and _any_requires_grad(*tensors)) or _profiled()
    return None if observed else run


def _direct(tensors: Sequence[Tensor]) -> Callable[..., Sequence[Tensor]] | None:
    """What runs plain tensors of one device outside of every mode and transform; None for all others."""
    if _modes() or _transformed():
        return None
    for t in tensors:
        if type(t) not in _PLAIN or not t.is_cpu:
            break
    else:  # written out, as it stands in the path of every call
        return dispatch.outputs
    return _cuda() if all([type(t) in _PLAIN and t.is_cuda for t in tensors]) else None


@cache
def _cuda() -> Callable[..., Sequence[Tensor]]:
    """What runs CUDA tensors; imported for the first of them."""
    from attncc.runtime.cuda.dispatch import outputs

    return outputs


def _dispatched(overload: Overload, *call: *Call) -> Sequence[Tensor]:
    """The operator by way of torch's dispatcher."""
    q, k, v, extras, scalars, integers, spec, layout = call
    if not torch.compiler.is_compiling() and _transformed():
        # `torch.func` transforms differentiate an autograd.Function, but not an operator's own autograd kernel.
        found: Sequence[Tensor] = _Transformable.apply(overload, scalars, integers, spec, layout, q, k, v, *extras)
        return found
    return overload(*call)


class Overload:
    """One of the operators, in the form that both share: it gives a sequence of tensors."""

    def __init__(self, name: str, returns: str) -> None:
        _library.define(f"{name}({ARGUMENTS}) -> {returns}", tags=(torch.Tag.pt2_compliant_tag,))
        self.alone = returns == "Tensor"
        self.packet: Any = getattr(torch.ops.attncc, name).default
        _library.impl(name, self.kernel, "CPU")
        _library.impl(name, self.cuda_kernel, "CUDA")
        _library.impl(name, self.fallback, "CompositeExplicitAutograd")
        _library.impl(name, self.autograd, "Autograd", with_keyset=True)
        torch.library.register_fake(f"attncc::{name}", self.fake, lib=_library)
        torch.library.register_vmap(f"attncc::{name}", self.vmap, lib=_library)

    def __call__(self, *call: *Call) -> Sequence[Tensor]:
        return self.sequence(self.packet(*call))

    def sequence(self, result: Any) -> Sequence[Tensor]:
        """What the operator returns, as a sequence."""
        found: Sequence[Tensor] = (result,) if self.alone else result
        return found

    def result(self, found: Sequence[Any]) -> Any:
        """A sequence, as the operator returns it."""
        return found[0] if self.alone else list(found)

    def kernel(self, *call: *Call) -> Any:
        """On CPU tensors."""
        return self.result(dispatch.outputs(*call))

    def cuda_kernel(self, *call: *Call) -> Any:
        """On CUDA tensors."""
        return self.result(_cuda()(*call))

    def fallback(self, *call: *Call) -> Any:
        """On devices without kernels: PyTorch's own operators."""
        q, k, v, extras, scalars, integers, spec, layout = call
        operands = (q, k, v, extras, scalars, integers)
        parsed = dispatch.parse_spec(spec)
        check.operands(parsed, operands, layout)
        stats.fallbacks.add()
        return self.result(eager.outputs(parsed, operands, layout))

    def autograd(self, keyset: Any, *call: *Call) -> Any:
        """Where a gradient may be recorded."""
        q, k, v, extras, scalars, integers, spec, layout = call
        tensors = (q, k, v, *extras)
        if _grad_enabled() and _any_requires_grad(*tensors):
            if _transformed():
                raise RuntimeError("torch.ops.attncc.attention under torch.func.grad: call attncc.attention instead")
            return self.result(_Attention.apply(self, keyset, scalars, integers, spec, layout, *tensors))
        return self.result(self.below_autograd(keyset, *call))

    def below_autograd(self, keyset: Any, *call: *Call) -> Sequence[Tensor]:
        """The outputs, without a record of them."""
        run = _direct((*call[:3], *call[3]))
        if run is not None:  # saves the second trip through the dispatcher
            return run(*call)
        with torch._C._AutoDispatchBelowAutograd():
            return self.sequence(self.packet.redispatch(keyset & torch._C._after_autograd_keyset, *call))

    def fake(self, *call: *Call) -> Any:
        """Shapes, dtypes and strides of the results, for sizes that may be symbolic."""
        q, k, v, *_, spec, layout = call
        batch, heads, rows, _ = q.shape
        inner = v.shape[3]
        if layout == "bhsd":
            out = q.new_empty(batch, heads, rows, inner)
        else:
            out = q.new_empty(batch, rows, heads, inner).transpose(1, 2)
        more = plan.more_outputs(dispatch.parse_spec(spec), (batch, heads, rows, k.shape[2]))
        return self.result([out, *(q.new_empty(size, dtype=dtype) for size, dtype in more)])

    def vmap(self, info: Any, in_dims: tuple[Any, ...], *call: *Call) -> tuple[Any, Any]:
        """One call an element of the mapped dimension: extras have no batch dimension that it could be folded into."""
        q, k, v, extras, scalars, integers, spec, layout = call
        dims = (*in_dims[:3], *in_dims[3])

        def element(tensor: Tensor, dim: int | None, at: int) -> Tensor:
            return tensor if dim is None else tensor.select(dim, at)

        results = []
        for at in range(info.batch_size):
            q_at, k_at, v_at, *extras_at = (element(t, d, at) for t, d in zip((q, k, v, *extras), dims, strict=True))
            results.append(self(q_at, k_at, v_at, extras_at, scalars, integers, spec, layout))
        stacked = [torch.stack(each) for each in zip(*results, strict=True)]
        return self.result(stacked), self.result([0] * len(stacked))


class _Attention(torch.autograd.Function):
    """Forward by whatever the device has, backward recomputed through the eager evaluation of the spec."""

    @staticmethod
    def forward(
        ctx: Any,
        overload: Overload,
        keyset: Any,
        scalars: Sequence[float],
        integers: Sequence[int],
        spec: str,
        layout: str,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        _keep(ctx, tensors, scalars, integers, spec)
        q, k, v, *extras = tensors
        return tuple(overload.below_autograd(keyset, q, k, v, extras, scalars, integers, spec, layout))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        scalars, integers, spec = ctx.constants
        saved = (
            ctx.saved_tensors
        )  # once: under torch.utils.checkpoint each look recomputes, and a second one is an error
        needed = ctx.needs_input_grad[-len(saved) :]
        again = torch.is_grad_enabled()  # create_graph=True: the gradient is to be differentiable itself
        with torch.enable_grad():
            # Each operand gets an identity of its own: the same tensor may be passed as q, k and v.
            q, k, v, *extras = (
                t if not need else t.view_as(t) if again else t.detach().requires_grad_()
                for t, need in zip(saved, needed, strict=True)
            )
            outputs = eager.outputs(dispatch.parse_spec(spec), (q, k, v, extras, scalars, integers))
            wanted = [t for t, need in zip((q, k, v, *extras), needed, strict=True) if need]
            # Not every output is asked for, nor does each depend on all that needs a gradient.
            asked = [(o, g) for o, g in zip(outputs, grads, strict=False) if g is not None and o.requires_grad]
            found = iter(_gradients(asked, wanted, again) if asked else [None] * len(wanted))
        others = len(ctx.needs_input_grad) - len(needed)
        return (*[None] * others, *(next(found) if need else None for need in needed))


class _Transformable(torch.autograd.Function):
    """The same in the form that `torch.func` needs, which costs every call an inspection of signatures."""

    generate_vmap_rule = True
    backward = _Attention.backward

    @staticmethod
    def forward(
        overload: Overload,
        scalars: Sequence[float],
        integers: Sequence[int],
        spec: str,
        layout: str,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        q, k, v, *extras = tensors
        return tuple(overload(q, k, v, extras, scalars, integers, spec, layout))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, scalars, integers, spec, _, *tensors = inputs
        _keep(ctx, tensors, scalars, integers, spec)


def _keep(ctx: Any, tensors: Sequence[Tensor], scalars: Sequence[float], integers: Sequence[int], spec: str) -> None:
    """What the backward pass needs."""
    ctx.save_for_backward(*tensors)
    ctx.constants = (scalars, integers, spec)
    ctx.set_materialize_grads(False)


def _gradients(
    asked: Sequence[tuple[Tensor, Tensor]], wanted: Sequence[Tensor], again: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of `wanted`, for outputs with the gradients that they received."""
    outputs, grads = zip(*asked, strict=True)
    found: tuple[Tensor | None, ...]
    found = torch.autograd.grad(outputs, wanted, grads, create_graph=again, allow_unused=True)
    return found


_one = Overload("attention", "Tensor")
_all = Overload("attention_outputs", "Tensor[]")
DIRECT: Mapping[Any, Callable[..., Any]] = {_one.packet: attention, _all.packet: attention_outputs}
"""By operator, the function above that calls it, or its kernel where the dispatcher has no say: 3 µs less a call."""
