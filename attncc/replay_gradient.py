"""Whether a fused site has the original's gradients, where the original cuts some of them (`detach`).

A value and its detached self are one in the IR. A maximum that is subtracted may be detached, and nothing changes;
weights or queries that are detached must not receive a gradient. Both are seen by differentiating the two sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from attncc import replay


def cuts_gradients(original: fx.Node, leaves: Sequence[fx.Node]) -> bool:
    """Whether a gradient is cut between the leaves and a node."""
    return any("aten.detach" in str(node.target) for node in replay.cone(original, leaves))


def gradients_differ(fused: fx.Node, original: fx.Node, leaves: Sequence[fx.Node], lengths: Sequence[int] = ()) -> bool:
    """Whether the gradients that reach the leaves differ. Raises as `replay.differs` does."""
    ours, theirs = replay.cone(fused, leaves), replay.cone(original, leaves)
    leaves = [leaf for leaf in leaves if leaf in {*ours, *theirs}]
    problem: Exception | None = None
    for sizes in replay.choices([*ours, *theirs], lengths):
        try:
            with torch.enable_grad(), _disable_current_modes():
                replay.check_size([*ours, *theirs], sizes)
                sides = [_gradients(nodes, node, leaves, sizes) for nodes, node in ((ours, fused), (theirs, original))]
        except replay.TooLarge as error:
            problem = error
        except (RuntimeError, IndexError, ValueError) as error:  # these sizes do not go together
            problem = problem or error
        else:
            return any(not torch.allclose(a, b, 1e-6, 1e-8, equal_nan=True) for a, b in zip(*sides, strict=True))
    raise problem or replay.TooLarge("no sizes to replay with")


def _gradients(
    nodes: Sequence[fx.Node], target: fx.Node, leaves: Sequence[fx.Node], sizes: replay.Sizes
) -> list[Tensor]:
    """The gradients of a weighted sum of `target` with respect to the leaves; 0 where none arrives."""
    generator = torch.Generator().manual_seed(1)
    given = {leaf: replay.sample(leaf.meta["val"], sizes, "random", generator) for leaf in leaves}
    wanted = [t.requires_grad_() for t in given.values() if isinstance(t, Tensor) and t.is_floating_point()]
    result = replay.run(nodes, target, given, sizes)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    total = (result * weights).sum()
    if not total.requires_grad:
        return [torch.zeros_like(t) for t in wanted]
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, found, strict=True)]
