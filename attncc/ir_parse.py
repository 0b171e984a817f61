"""The reading of IR text: the inverse of `attncc.ir_text`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv

from attncc import expr as ex
from attncc import index as ix
from attncc import ir
from attncc.spec import AttentionSpec
from attncc.symbolic import Dim, reduce

_BINARY = {"Add": "add", "Sub": "sub", "Mult": "mul", "Div": "div", "FloorDiv": "floordiv", "Mod": "mod",
           "BitAnd": "and", "BitOr": "or", "BitXor": "xor"}  # fmt: skip
_COMPARE = {"Lt": "lt", "LtE": "le", "Gt": "gt", "GtE": "ge", "Eq": "eq", "NotEq": "ne"}


def parse(text: str) -> ir.Graph:
    """The graph that a text describes. Raises ValueError for anything that `to_text` does not write."""
    title, *lines = [line.strip() for line in text.strip().splitlines()]
    match = re.fullmatch(r"graph\((.*?)\)(?:  # after (.*))?", title)
    if match is None or not lines or not lines[-1].startswith("return"):
        raise ValueError(f"not an IR graph: {title[:80]!r}")
    hints = {n: int(v) for n, v in (p.split("=") for p in match[1].split(", ") if p)}
    nodes: dict[str, ir.Node] = {}
    for line in lines[:-1]:
        node = _parse_node(line, nodes)
        nodes[node.name] = node
    outputs = tuple(o[1:] for o in lines[-1].removeprefix("return").strip().split(", ") if o)
    return ir.Graph(nodes, outputs, match[2] or "", hints)


def parse_expression(text: str) -> ex.Expr:
    """The inverse of `expression_text`. Raises ValueError on anything else."""
    try:
        return _expression(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not an IR expression: {text!r}") from error


def _expression(tree: ast.expr) -> ex.Expr:
    match tree:
        case ast.Constant(value=value) if isinstance(value, bool | int | float):
            return ex.Const(value, {"bool": "bool", "int": "int64", "float": "float32"}[type(value).__name__])
        case ast.Name(id="inf" | "nan" as name):
            return ex.Const(float(name), "float32")
        case ast.Name(id=name) if name.startswith("_"):
            return ex.Arg(int(name[1:]), "float32")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            literal = _expression(operand)
            if isinstance(literal, ex.Const):
                return ex.Const(-literal.value, literal.dtype)
        case ast.BinOp(left=left, op=op, right=right):
            return ex.op(_BINARY[type(op).__name__], _expression(left), _expression(right))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return ex.op(_COMPARE[type(op).__name__], _expression(left), _expression(right))
        case ast.Call(func=ast.Name(id="at"), args=[ast.Name(id=name)]):
            return ex.Index(name)
        case ast.Call(func=ast.Name(id="size"), args=[ast.Name(id=name)]):
            return ex.Size(name)
        case ast.Call(func=ast.Name(id=name), args=[value]) if name in ex.DTYPES:
            return ex.Const(_expression(value).value, name)  # type: ignore[attr-defined]
        case ast.Call(func=ast.Subscript(value=ast.Name(id="arg"), slice=ast.Name(id=dtype)), args=[value]):
            return ex.Arg(_expression(value).number, dtype)  # type: ignore[attr-defined]
        case ast.Call(func=ast.Subscript(value=ast.Name(id=name), slice=ast.Name(id=dtype)), args=args):
            return ex.Op(name.rstrip("_"), tuple(map(_expression, args)), dtype)
        case ast.Call(func=ast.Name(id=name), args=args):
            return ex.op(name.rstrip("_"), *map(_expression, args))
    raise ValueError(f"not an IR expression: {ast.unparse(tree)}")


_SIZE_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Pow: lambda a, b: a**b,
    ast.FloorDiv: FloorDiv,
}
_LINE = re.compile(r"%(\S+): (\w+)\[(.*?)\] = (\w+)\{(.*?)\}(?: (.*))?")


def _parse_node(line: str, known: dict[str, ir.Node]) -> ir.Node:
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(f"not an IR node: {line!r}")
    name, dtype, dims_text, kind, space, payload = match.groups()
    axes = tuple(_axis(part) for part in re.split(r", | \| |\| ", space) if part)
    dims = tuple(() if d == "1" else tuple(d.split(".")) for d in dims_text.split(", ") if d)
    common: dict[str, Any] = {"name": name, "dtype": dtype, "axes": axes, "dims": dims}
    readers: dict[str, Callable[[str], ir.Node]] = {
        "input": lambda t: ir.Input(**common, number=t == "number", parameter=t == "parameter"),
        "const": lambda t: ir.Const(**common, value=_number(t)),
        "iota": lambda t: ir.Iota(**common, position=_linear(t)),
        "view": lambda t: ir.View(**common, operand=_accesses(t)[0]),
        "gather": lambda t: _parse_gather(common, t),
        "concat": lambda t: ir.Concat(
            **common, dim=int(t.split(":")[0]), parts=tuple(re.findall(r"%([\w.]+)", t.split(":", 1)[1]))
        ),
        "map": lambda t: _parse_map(common, t),
        "contract": lambda t: ir.Contract(**common, operands=_accesses(t)),
        "reduce": lambda t: ir.Reduce(**common, kind=t.split()[0], operand=_accesses(t)[0]),
        "opaque": lambda t: _parse_opaque(common, t),
        "attention": lambda t: _parse_attention(common, t),
        "output": lambda t: ir.Output(**common, kind=t.split()[0], attention=t.split("%")[1]),
    }
    if kind not in readers:
        raise ValueError(f"unknown IR node {kind!r} in {line!r}")
    return readers[kind](payload or "")


def _axis(text: str) -> tuple[str, Dim]:
    name, size = text.split(": ")
    return name, _size(size)


def _size(text: str) -> Dim:
    if text.strip().lstrip("-").isdigit():
        return int(text)
    return reduce(_size_tree(ast.parse(text.strip(), mode="eval").body))


def _size_tree(tree: ast.expr) -> Any:
    match tree:
        case ast.Constant(value=int(number)):
            return sympy.Integer(number)
        case ast.Name(id=name):
            return sympy.Symbol(name, integer=True, positive=True)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_size_tree(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _SIZE_OPERATORS:
            return _SIZE_OPERATORS[type(op)](_size_tree(left), _size_tree(right))
    raise ValueError(f"not a size: {ast.unparse(tree)}")


def _number(text: str) -> float | int | bool:
    if text in ("True", "False"):
        return text == "True"
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def _linear(text: str) -> ix.Linear:
    """`a * 64 + b + 3`; coefficients and constants that are not plain numbers stand in parentheses."""
    terms: list[ix.Linear] = []
    for part in re.split(r" \+ (?![^(]*\))", text.strip()):
        factors = re.fullmatch(r"([a-z]\d*)(?: \* (.+))?", part)
        if factors is None:
            terms.append(ix.constant(_size(part.strip("()") if part.startswith("(") else part)))
        else:
            size = factors[2] or "1"
            terms.append(ix.scaled(ix.axis(factors[1]), _size(size[1:-1] if size.startswith("(") else size)))
    return ix.total(terms)


_ACCESS = re.compile(r"%([\w.]+)\[([^\[\]]*)\]")


def _accesses(text: str) -> tuple[ir.Access, ...]:
    return tuple(
        ir.Access(m[1], tuple(_linear(p) for p in re.split(r", (?![^(]*\))", m[2]) if p))
        for m in _ACCESS.finditer(text)
    )


def _parse_gather(common: dict[str, Any], text: str) -> ir.Node:
    match = re.fullmatch(r"%([\w.]+)\[(.*)\]", text)
    if match is None:
        raise ValueError(f"not a gather: {text!r}")
    parts = match[2].split("; ")
    return ir.Gather(
        **common, source=match[1], indices=tuple(_accesses(p)[0] if p.startswith("%") else _linear(p) for p in parts)
    )


def _parse_map(common: dict[str, Any], text: str) -> ir.Node:
    operands, body = text.split(": ", 1) if text.startswith("%") else ("", text.removeprefix(":"))
    return ir.Map(**common, operands=_accesses(operands), body=parse_expression(body))


def _parse_opaque(common: dict[str, Any], text: str) -> ir.Node:
    head, _, note = text.partition("  # ")
    match = re.fullmatch(r"(.*?)\((.*)\)", head)
    if match is None:
        raise ValueError(f"not an opaque node: {text!r}")
    return ir.Opaque(**common, op=match[1], operands=tuple(re.findall(r"%([\w.]+)", match[2])), note=note)


def _parse_attention(common: dict[str, Any], text: str) -> ir.Node:
    accesses, _, blob = text.partition(" {")
    data = json.loads("{" + blob)
    operands = _accesses(accesses)
    return ir.Attention(
        **common,
        q=operands[0],
        k=operands[1],
        v=operands[2],
        weight=operands[3] if len(operands) > 3 else None,
        extras=tuple((n, tuple(None if p is None else _size(p) for p in at)) for n, at in data["extras"]),
        spec=AttentionSpec.from_json(data["spec"]),
        roles=tuple((r, tuple(a)) for r, a in data["roles"]),
        scalars=tuple(data["scalars"]),
        integers=tuple(_size(n) for n in data["integers"]),
        static=tuple((_size(s), n) for s, n in data["static"]),
        covers=tuple(data["covers"]),
    )
