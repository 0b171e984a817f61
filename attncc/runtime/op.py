"""The torch operator `attncc::attention`: one for all specs, so that it exists in every process that imports attncc.

    attention(Tensor q, Tensor k, Tensor v, Tensor[] extras, float[] scalars, SymInt[] integers, str spec, str layout)

q [B, H, Sq, D], k [B, G, Skv, D], v [B, G, Skv, E] give [B, H, Sq, E]; `spec` is an AttentionSpec's JSON and `layout`
("bhsd" or "bshd") the order in which the result is contiguous. CPU tensors run kernels; other devices run the same
attention by PyTorch's operators. Fake tensors, autograd (recomputed through those operators), `torch.func` transforms,
Inductor and export work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attncc.runtime import check, dispatch, eager, stats

SCHEMA = (
    "attention(Tensor q, Tensor k, Tensor v, Tensor[] extras, float[] scalars, SymInt[] integers, str spec, str layout)"
    " -> Tensor"
)
_library = torch.library.Library("attncc", "DEF")
_library.define(SCHEMA, tags=(torch.Tag.pt2_compliant_tag,))
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
    if torch.compiler.is_compiling():
        compiled: Tensor = _overload(q, k, v, extras, scalars, integers, spec, layout)
        return compiled
    tensors = (q, k, v, *extras)
    # A call that skips the dispatcher would be missing from a profile.
    if _plain(tensors) and not (_grad_enabled() and _any_requires_grad(*tensors)) and not _profiled():
        return dispatch.attention(q, k, v, extras, scalars, integers, spec, layout)
    if _transformed():
        # `torch.func` transforms differentiate an autograd.Function, but not an operator's own autograd kernel.
        transformed: Tensor = _Transformable.apply(scalars, integers, spec, layout, q, k, v, *extras)
        return transformed
    result: Tensor = _overload(q, k, v, extras, scalars, integers, spec, layout)
    return result


def _plain(tensors: Sequence[Tensor]) -> bool:
    """Whether these are plain CPU tensors outside of every mode and transform."""
    if _modes() or _transformed():
        return False
    return all([type(t) in _PLAIN and t.is_cpu for t in tensors])


def _autograd(
    keyset: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Tensor:
    tensors = (q, k, v, *extras)
    if _grad_enabled() and _any_requires_grad(*tensors):
        if _transformed():
            raise RuntimeError("torch.ops.attncc.attention under torch.func.grad: call attncc.attention instead")
        result: Tensor = _Attention.apply(keyset, scalars, integers, spec, layout, *tensors)
        return result
    if _plain(tensors):  # saves the second trip through the dispatcher
        return dispatch.attention(q, k, v, extras, scalars, integers, spec, layout)
    return _below_autograd(keyset, tensors, scalars, integers, spec, layout)


def _below_autograd(
    keyset: Any,
    tensors: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Tensor:
    q, k, v, *extras = tensors
    args = (q, k, v, extras, scalars, integers, spec, layout)
    with torch._C._AutoDispatchBelowAutograd():
        result: Tensor = _overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)
    return result


class _Attention(torch.autograd.Function):
    """Forward by whatever the device has, backward recomputed through the eager evaluation of the spec."""

    @staticmethod
    def forward(
        ctx: Any,
        keyset: Any,
        scalars: Sequence[float],
        integers: Sequence[int],
        spec: str,
        layout: str,
        *tensors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.constants = (scalars, integers, spec)
        if _plain(tensors):
            q, k, v, *extras = tensors
            return dispatch.attention(q, k, v, extras, scalars, integers, spec, layout)
        return _below_autograd(keyset, tensors, scalars, integers, spec, layout)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scalars, integers, spec = ctx.constants
        needed = ctx.needs_input_grad[-len(ctx.saved_tensors) :]
        again = torch.is_grad_enabled()  # create_graph=True: the gradient is to be differentiable itself
        with torch.enable_grad():
            # Each operand gets an identity of its own: the same tensor may be passed as q, k and v.
            q, k, v, *extras = (
                t if not need else t.view_as(t) if again else t.detach().requires_grad_()
                for t, need in zip(ctx.saved_tensors, needed, strict=True)
            )
            out = eager.attention(dispatch.parse_spec(spec), q, k, v, extras, scalars, integers)
            wanted = [t for t, need in zip((q, k, v, *extras), needed, strict=True) if need]
            found = iter(torch.autograd.grad(out, wanted, grad, create_graph=again, allow_unused=True))
        others = len(ctx.needs_input_grad) - len(needed)
        return (*[None] * others, *(next(found) if need else None for need in needed))


class _Transformable(torch.autograd.Function):
    """The same in the form that `torch.func` needs, which costs every call an inspection of signatures."""

    generate_vmap_rule = True
    backward = _Attention.backward

    @staticmethod
    def forward(scalars: Sequence[float], integers: Sequence[int], spec: str, layout: str, *tensors: Tensor) -> Tensor:
        q, k, v, *extras = tensors
        result: Tensor = _overload(q, k, v, extras, scalars, integers, spec, layout)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        scalars, integers, spec, _, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.constants = (scalars, integers, spec)


def _fallback(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Tensor:
    """Devices without kernels: PyTorch's own operators."""
    parsed = dispatch.parse_spec(spec)
    check.operands(parsed, q, k, v, extras, scalars, integers, layout)
    stats.fallbacks.add()
    return eager.attention(parsed, q, k, v, extras, scalars, integers, layout)


def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> Tensor:
    """Shape, dtype and strides of the result, for sizes that may be symbolic."""
    batch, heads, rows, _ = q.shape
    inner = v.shape[3]
    if layout == "bhsd":
        return q.new_empty(batch, heads, rows, inner)
    return q.new_empty(batch, rows, heads, inner).transpose(1, 2)


def _vmap(
    info: Any,
    in_dims: tuple[Any, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    extras: Sequence[Tensor],
    scalars: Sequence[float],
    integers: Sequence[int],
    spec: str,
    layout: str,
) -> tuple[Tensor, int]:
    """One call an element of the mapped dimension: extras have no batch dimension that it could be folded into."""
    dims = (*in_dims[:3], *in_dims[3])

    def element(tensor: Tensor, dim: int | None, at: int) -> Tensor:
        return tensor if dim is None else tensor.select(dim, at)

    results = []
    for at in range(info.batch_size):
        q_at, k_at, v_at, *extras_at = (element(t, d, at) for t, d in zip((q, k, v, *extras), dims, strict=True))
        results.append(_overload(q_at, k_at, v_at, extras_at, scalars, integers, spec, layout))
    return torch.stack(results), 0


_overload = torch.ops.attncc.attention.default
_library.impl("attention", dispatch.attention, "CPU")
_library.impl("attention", _fallback, "CompositeExplicitAutograd")
_library.impl("attention", _autograd, "Autograd", with_keyset=True)
torch.library.register_fake("attncc::attention", _fake, lib=_library)
torch.library.register_vmap("attncc::attention", _vmap, lib=_library)
