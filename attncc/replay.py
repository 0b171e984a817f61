"""The second belt: a fused site run beside the nodes it replaces, in float64, on small inputs made to break it.

Both sides start from the same values (the tensors that the fusion reads), so layouts, masks and scales of the emitted
operands are checked with the attention itself. Symbolic sizes become small primes, and so do long fixed sequence
lengths wherever they stand in the graph; scores reach ±800; masks that arrive as tensors are random, all false, and all
true, so that some rows see no key. The oracle is `attncc.reference`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import sympy
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate
from torch.utils._python_dispatch import _disable_current_modes

from attncc import reference
from attncc.convert.driver import literal
from attncc.convert.effects import storages, written
from attncc.convert.sizes import example
from attncc.spec import AttentionSpec
from attncc.symbolic import dim

LARGEST = 2**22
"""Elements of the largest tensor of a replay; a site that is larger with every choice of sizes is not replayed."""
_LONG = 96
"""A fixed length from here on is replayed as one of `_SHORT`."""
_SHORT = (23, 31)
_PRIMES = (3, 5, 7, 2, 11, 13)
_OF_KIND = {f"aten.{name}.default": 1 for name in ("type_as", "expand_as", "view_as", "reshape_as")}
"""Operators with an argument that lends a shape or a dtype, and its number."""
_SCALAR = 0.35
"""Stands for every number that is known only at run time."""


@dataclass(frozen=True)
class Sizes:
    """Numbers for the size symbols, and smaller ones (`fixed`: from, to) for lengths that are numbers in the graph."""

    symbols: Mapping[sympy.Symbol, int]
    fixed: tuple[tuple[int, int], ...] = ()

    def __call__(self, size: Any) -> int:
        """A size of the graph as the replay has it."""
        expression = dim(size)
        return self.shrunk(expression) if isinstance(expression, int) else int(expression.subs(self.symbols))

    def shrunk(self, number: int) -> int:
        """A length, or a multiple of one, by the smaller length that stands for it."""
        for old, new in sorted(self.fixed, key=lambda pair: (pair[0] != number, -pair[0])):
            if number and number % old == 0:
                return number // old * new
        return number


@dataclass(frozen=True)
class Pair:
    """A fused node and the one that it replaces, each with the nodes that compute it from the common leaves."""

    fused: fx.Node
    original: fx.Node
    leaves: tuple[fx.Node, ...]
    ours: tuple[fx.Node, ...]
    theirs: tuple[fx.Node, ...]

    @classmethod
    def of(cls, fused: fx.Node, original: fx.Node, leaves: Sequence[fx.Node]) -> Self:
        """Of `leaves`, those that either side reads."""
        ours, theirs = cone(fused, leaves), cone(original, leaves)
        return cls(fused, original, tuple(n for n in leaves if n in {*ours, *theirs}), tuple(ours), tuple(theirs))


class TooLarge(Exception):
    """The site's sizes are fixed, and too large to be cheap."""


def differs(fused: fx.Node, original: fx.Node, leaves: Sequence[fx.Node], lengths: Sequence[int] = ()) -> str | None:
    """Where the two nodes, computed from `leaves`, do not have the same values: what was seen. None where they agree.

    `lengths` are the sequence lengths of the site that are fixed numbers; long ones are replayed shorter. Raises
    TooLarge, and what PyTorch raises where the nodes do not run on any of the chosen sizes.
    """
    pair = Pair.of(fused, original, leaves)
    problem: Exception | None = None
    for sizes in choices([*pair.ours, *pair.theirs], lengths):
        try:
            with torch.no_grad(), _disable_current_modes():  # real numbers, whatever the caller traces with
                return _compare(pair, sizes)
        except TooLarge as error:
            problem = error
        except (RuntimeError, IndexError, ValueError) as error:  # these sizes do not go together
            problem = problem or error
    raise problem or TooLarge("no sizes to replay with")


def cone(target: fx.Node, leaves: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes that compute `target` from `leaves`, in order, with the in-place changes made on the way."""
    stop, needed, stack = set(leaves), {target}, [target]
    order: list[fx.Node] = list(target.graph.nodes)
    before = order[: order.index(target)]
    while stack:
        while stack:
            node = stack.pop()
            if node not in stop and not isinstance(node.meta.get("val"), torch.SymInt | int):
                fresh = set(elements_read(node)) - needed
                needed |= fresh
                stack += fresh
        fixed = {key for n in stop for key in storages(n.meta.get("val"))}
        inner = {key for n in needed - stop for key in storages(n.meta.get("val"))} - fixed
        stack = [
            n
            for n in before
            if n not in needed and any(key in inner for w in written(n) for key in storages(w.meta.get("val")))
        ]
        needed |= set(stack)
    return [n for n in order if n in needed]


def elements_read(node: fx.Node) -> list[fx.Node]:
    """The arguments whose elements an operator reads: not those that lend a shape or a dtype only (`type_as`)."""
    name = str(node.target)
    of_kind = _OF_KIND.get(name, 0 if name.startswith("aten.new_") or "_like." in name else None)
    inputs: list[fx.Node] = node.all_input_nodes
    if of_kind is None:
        return inputs
    model = node.args[of_kind]
    others = [*node.args[:of_kind], *node.args[of_kind + 1 :], *node.kwargs.values()]
    return [n for n in inputs if n is not model or n in others]


def choices(nodes: Sequence[fx.Node], lengths: Sequence[int]) -> Iterator[Sizes]:
    """Sizes to try: small primes for symbols and long fixed lengths, then the sizes of the example inputs."""
    symbols: dict[sympy.Symbol, int] = {}
    awkward: set[sympy.Symbol] = set()
    for node in nodes:
        value = node.meta.get("val")
        for size in [*value.shape, *value.stride()] if isinstance(value, Tensor) else [value]:
            if isinstance(size, torch.SymInt):
                expression = size.node.expr
                for symbol in sorted(expression.free_symbols, key=str):
                    symbols.setdefault(symbol, example(symbol, size.node.shape_env) or 3)
                for part in sympy.preorder_traversal(expression):
                    if not (part.is_Symbol or part.is_Number or part.is_Add or part.is_Mul or part.is_Pow):
                        awkward |= part.free_symbols  # a division that has to come out even
    long = sorted({n for n in lengths if n >= _LONG})
    fixed = tuple(zip(long, _SHORT, strict=False))
    small = {s: _PRIMES[n % len(_PRIMES)] for n, s in enumerate(s for s in symbols if s not in awkward)}
    if small or fixed:
        yield Sizes({**symbols, **small}, fixed)
    yield Sizes(symbols)


def check_size(nodes: Sequence[fx.Node], sizes: Sizes) -> None:
    """Raises TooLarge where a tensor of the replay would be."""
    for node in nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and math.prod(sizes(s) for s in value.shape) > LARGEST:
            raise TooLarge(f"{node.name} has {tuple(value.shape)} elements")


def _compare(pair: Pair, sizes: Sizes) -> str | None:
    check_size([*pair.ours, *pair.theirs], sizes)
    rounding = max((_rounding(n) for n in pair.ours), default=0.0)
    leaves = [n.meta["val"] for n in pair.leaves]
    discrete = any(isinstance(leaf, Tensor) and not leaf.is_floating_point() for leaf in leaves)
    for trial in ("random", "large", "visible") if discrete else ("random", "large"):
        problem, overflow = _tried(pair, sizes, rounding, trial)
        if problem is not None and trial == "large" and overflow:
            # An original that subtracts no maximum overflows on scores for which the fused attention is right.
            problem, _ = _tried(pair, sizes, rounding, "hidden")
        if problem is not None:
            return f"{problem} ({trial} inputs)"
    return None


def _tried(pair: Pair, sizes: Sizes, rounding: float, trial: str) -> tuple[str | None, bool]:
    """The difference on one kind of inputs, and whether the original has NaN where the fused has numbers."""
    generator = torch.Generator().manual_seed(len(trial))
    given = {leaf: sample(leaf.meta["val"], sizes, trial, generator) for leaf in pair.leaves}
    expected = run(pair.theirs, pair.original, given, sizes)
    actual = run(pair.ours, pair.fused, given, sizes)
    same = actual.shape == expected.shape
    overflow = same and bool(
        (expected.isnan() & ~actual.isnan()).any() and not (actual.isnan() & ~expected.isnan()).any()
    )
    return _difference(actual, expected, rounding), overflow


def sample(fake: Any, sizes: Sizes, trial: str, generator: torch.Generator) -> Any:
    """A value for a leaf: a number, or a tensor of the fake's shape."""
    if not isinstance(fake, Tensor):
        return _SCALAR
    shape = [sizes(s) for s in fake.shape]
    if fake.is_floating_point():
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        return tensor * 12 if trial == "large" and tensor.ndim > 1 else tensor
    if fake.dtype == torch.int8 and trial != "visible":  # codes of a cache, or a mask
        return torch.randint(-3, 4, shape, generator=generator).to(fake.dtype)
    if trial == "random":
        return torch.randint(0, 2, shape, generator=generator).to(fake.dtype)
    return torch.full(shape, trial == "visible").to(fake.dtype)


def _laid_out(tensor: Tensor, fake: Tensor, sizes: Sizes) -> Tensor:
    """A copy that lies in memory as the fake does, which overlapping views can tell; not where lengths are smaller."""
    strides = [sizes(s) for s in fake.stride()]
    if sizes.fixed or any(stride == 0 for stride in strides):
        return tensor.clone()
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def run(nodes: Sequence[fx.Node], target: fx.Node, given: Mapping[fx.Node, Any], sizes: Sizes) -> Tensor:
    """`target` computed in float64 from the given leaves."""
    values: dict[fx.Node, Any] = {}

    def value(read: fx.Node) -> Any:
        """What an argument is: of one that lends its shape only, anything of that shape."""
        if read not in values:
            values[read] = sample(read.meta["val"], sizes, "visible", torch.Generator().manual_seed(0))
        return values[read]

    for node in nodes:
        fake = node.meta.get("val")
        if node in given:
            known = given[node]
            values[node] = _laid_out(known, fake, sizes) if isinstance(known, Tensor) else known
        elif isinstance(fake, torch.SymInt | int):
            values[node] = sizes(fake)
        elif isinstance(fake, torch.SymFloat):
            number = fake.node.expr.subs(sizes.symbols)
            values[node] = float(number) if number.is_number else _SCALAR
        elif node.op == "call_function":
            args, kwargs = (map_aggregate(x, partial(_small, sizes)) for x in (node.args, node.kwargs))
            values[node] = _call(node, fx.map_arg(args, value), fx.map_arg(kwargs, value))
        elif node.op == "get_attr" and isinstance(fake, Tensor):
            number = literal(node.graph.owning_module, node)
            drawn = sample(fake, sizes, "random", torch.Generator().manual_seed(1))
            values[node] = drawn if number is None else torch.full_like(drawn, number)
        else:
            raise ValueError(f"{node.name} is no part of the replay")
    return values[target]


def _call(node: fx.Node, args: Any, kwargs: Any) -> Any:
    """One operator, with float64 wherever it names a floating-point dtype or makes one by default."""
    target: Any = node.target
    if kwargs.get("dtype") is None and _makes_floats(node):
        kwargs = {**kwargs, "dtype": torch.float64}
    if target in (torch.ops.attncc.attention.default, torch.ops.attncc.attention_outputs.default):
        q, k, v, extras, scalars, integers, text, _ = args
        spec = AttentionSpec.from_json(text)
        given = reference.outputs(spec, q, k, v, extras, scalars, integers)
        one = target is torch.ops.attncc.attention.default
        return given["out"] if one else [given[kind] for kind in spec.outputs]
    return target(*args, **kwargs)


def _makes_floats(node: fx.Node) -> bool:
    """Whether an operator makes a floating-point tensor out of nothing, such as `empty`."""
    fake, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
    given = any(isinstance(n.meta.get("val"), Tensor) for n in node.all_input_nodes)
    floats = isinstance(fake, Tensor) and fake.is_floating_point() and not given
    return floats and schema is not None and any(a.name == "dtype" for a in schema.arguments)


def _small(sizes: Sizes, argument: Any) -> Any:
    """An argument as the replay has it: lengths by shorter ones, floating-point dtypes by float64."""
    if isinstance(argument, torch.dtype) and argument.is_floating_point:
        return torch.float64
    return sizes.shrunk(argument) if isinstance(argument, int) and not isinstance(argument, bool) else argument


def _rounding(node: fx.Node) -> float:
    """What the order of additions may change where a finite number as large as 1e10 is added to scores to hide keys:
    rows that see no key keep of their scores what float64 leaves of it."""
    numbers = [x for argument in node.args for x in (argument if isinstance(argument, list | tuple) else ())]
    added = [abs(x) for x in numbers if isinstance(x, float) and 1e6 < abs(x) < 1e12]
    return 4 * 2.0**-52 * max(added, default=0.0)


_ULP = 2.0**-24


def _difference(actual: Tensor, expected: Tensor, rounding: float = 0.0) -> str | None:
    if actual.shape != expected.shape:
        return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    finite = expected.isfinite() | ~actual.isfinite()
    if not bool(torch.equal(actual.isnan(), expected.isnan())):
        return "NaN in other places than the original's"
    # Relative to what is large, float32's own rounding: a fill may have been rounded to it on one side only.
    wrong = ((actual - expected).abs() > max(1e-8, rounding) * (1 + expected.abs()) + _ULP * expected.abs()) & finite
    if bool(wrong.any()):
        worst = (actual - expected).abs().nan_to_num(0).max().item()
        return f"a difference of {worst:.3g} from the original"
    return None
