"""Programs of bands with one argument of one operator changed: what is fused is right without the second belt, too."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from bands.test_bands import Chunked
from capture import rewritten, traced
from torch import Tensor, fx

KINDS = ("slice", "select", "pad", "as_strided", "flip", "tril", "view", "transpose", "unfold", "copy_", "where",
         "einsum", "full_like", "new_zeros", "softmax", "masked_fill")  # fmt: skip
PROGRAMS = (
    Chunked(),
    Chunked(w=3, chunks=2, masked=True, rows_first=True),
    Chunked(chunks=2, masked=True, zeroed=True, unfolded=True, batch=1),
)
MUTANTS = (4, pytest.param(30, marks=pytest.mark.slow))
"""Programs of each kind that run."""


def mutate(gm: fx.GraphModule, chance: random.Random) -> None:
    """Another number, another operand of the same form, a write that is left out, or two that change places."""
    nodes = [n for n in gm.graph.nodes if n.op == "call_function" and any(kind in str(n.target) for kind in KINDS)]
    node = chance.choice(nodes)
    how = chance.random()
    if how < 0.6:
        numbers = [p for p, a in enumerate(node.args) if isinstance(a, int) and not isinstance(a, bool)]
        lists = [p for p, a in enumerate(node.args) if isinstance(a, list) and all(isinstance(x, int) for x in a)]
        for p in chance.sample([*numbers, *lists], min(1, len(numbers + lists))):
            given = node.args[p]
            step = chance.choice((-2, -1, 1, 2))
            if isinstance(given, list):
                at = chance.randrange(len(given))
                changed = [x + step * (n == at) for n, x in enumerate(given)]
            node.update_arg(p, changed if isinstance(given, list) else given + step)
    elif how < 0.75:
        old = chance.choice(node.all_input_nodes or [node])
        alike = [n for n in gm.graph.nodes if n < node and n is not old and form(n) == form(old)]
        for new in chance.sample(alike, min(1, len(alike))):
            node.replace_input_with(old, new)
    elif how < 0.9:
        same = [n for n in node.all_input_nodes if form(n) == form(node)]
        for source in same[:1]:
            node.replace_all_uses_with(source)
            gm.graph.erase_node(node)
    else:
        writes = [n for n in nodes if "copy_" in str(n.target)]
        a, b = chance.sample(writes, 2)
        a.args, b.args = (a.args[0], b.args[1]), (b.args[0], a.args[1])


def form(node: fx.Node) -> object:
    fake = node.meta.get("val")
    return (fake.shape, fake.dtype) if isinstance(fake, Tensor) else node


@pytest.mark.parametrize("mutants", MUTANTS)
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_no_mutant_is_fused_wrongly(program: Chunked, mutants: int) -> None:
    chance = random.Random(program.w)
    # in float64: masks of -1e4, added more than once, cost eager float32 three digits
    inputs = [x.double() if x.is_floating_point() else x for x in program.inputs()]
    original = traced(program, inputs)
    ran = 0
    while ran < mutants:
        mutant = copy.deepcopy(original)
        mutate(mutant, chance)
        try:
            mutant.graph.lint()
            mutant.recompile()
            expected = mutant(*(x.clone() for x in inputs))
            again = traced(mutant, inputs)
        except (RuntimeError, IndexError, ValueError):
            continue  # no program any more
        ran += 1
        seen = rewritten(again, inputs, verify=False)
        torch.testing.assert_close(seen.result, expected, atol=1e-9, rtol=1e-9, equal_nan=True)
