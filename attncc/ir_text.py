"""IR as text, and back. One node a line:

    %scores: float32[2, s0, s0] = contract{a: 2, b: s0, c: s0 | d: 64} %q[a, b, d] * %k[a, c, d]
    %p: float32[2, s0, s0] = map{a: 2, b: s0, c: s0} %scores[a, b, c]: where(b >= c, _0 * 0.125, -inf)

Expressions are written in Python's syntax: `_0` is the first operand, `@a` the position on axis a, `float32(x)` a cast;
a dtype that does not follow from the operands is added, as in `add[float64](x, y)` or `float64(2.5)`.
"""

from __future__ import annotations

import json

from attncc import expr as ex
from attncc import ir
from attncc.ir_parse import parse as parse
from attncc.ir_parse import parse_expression as parse_expression

_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%",
          "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
          "and": "&", "or": "|", "xor": "^"}  # fmt: skip
_PYTHON_NAME = {"not": "not_", "and": "and_", "or": "or_"}


def to_text(graph: ir.Graph) -> str:
    """The graph as text that `parse` reads."""
    sizes = ", ".join(f"{name}={value}" for name, value in sorted(graph.hints.items()))
    title = f"graph({sizes})" + (f"  # after {graph.after}" if graph.after else "")
    body = [f"  {_node(n)}" for n in graph]
    return "\n".join([title, *body, f"  return {', '.join('%' + o for o in graph.outputs)}"])


def _node(node: ir.Node) -> str:
    kind = type(node).__name__.lower()
    kept = [f"{a}: {s}" for a, s in node.axes if a not in node.reduced]
    gone = [f"{a}: {node.sizes[a]}" for a in node.reduced]
    space = "{" + ", ".join(kept) + (" | " + ", ".join(gone) if gone else "") + "}"
    dims = ", ".join(".".join(d) or "1" for d in node.dims)
    return f"%{node.name}: {node.dtype}[{dims}] = {kind}{space} {_payload(node)}".rstrip()


def _payload(node: ir.Node) -> str:
    match node:
        case ir.Input(number=number, parameter=parameter):
            return "number" if number else "parameter" if parameter else ""
        case ir.Const(value=value):
            return repr(value)
        case ir.Iota(position=position):
            return str(position)
        case ir.View(operand=operand):
            return _access(operand)
        case ir.Gather(source=source, indices=indices):
            parts = (_access(i) if isinstance(i, ir.Access) else str(i) for i in indices)
            return f"%{source}[{'; '.join(parts)}]"
        case ir.Concat(parts=parts, dim=dim):
            return f"{dim}: " + ", ".join("%" + p for p in parts)
        case ir.Map(operands=operands, body=body):
            return ", ".join(map(_access, operands)) + ": " + expression_text(body)
        case ir.Contract(operands=operands):
            return " * ".join(map(_access, operands))
        case ir.Reduce(kind=kind, operand=operand):
            return f"{kind} {_access(operand)}"
        case ir.Opaque(op=op, operands=names, note=note):
            return f"{op}({', '.join('%' + n for n in names)})" + (f"  # {note}" if note else "")
        case ir.Attention():
            return _attention(node)
        case ir.Output(attention=attention, kind=kind):
            return f"{kind} of %{attention}"
    return ""


def _attention(node: ir.Attention) -> str:
    data = {
        "roles": [[r, list(a)] for r, a in node.roles],
        "scalars": list(node.scalars),
        "integers": [str(n) for n in node.integers],
        "static": [[str(s), n] for s, n in node.static],
        "extras": [[name, [None if p is None else str(p) for p in at]] for name, at in node.extras],
        "covers": list(node.covers),
        "spec": node.spec.json if node.spec is not None else None,
    }
    return ", ".join(map(_access, node.accesses)) + " " + json.dumps(data)


def _access(access: ir.Access) -> str:
    return f"%{access.value}[{', '.join(map(str, access.index))}]"


def expression_text(expr: ex.Expr) -> str:
    """An IR expression in Python's syntax, with enough dtypes to read it back."""

    def number(value: float | int | bool, dtype: str) -> str:
        plain = {"bool": "bool", "int": "int64", "float": "float32"}[type(value).__name__] == dtype
        return repr(value) if plain else f"{dtype}({value!r})"

    def visit(node: ex.Expr, args: tuple[str, ...]) -> str:
        match node:
            case ex.Const(value, dtype):
                return number(value, dtype)
            case ex.Arg(n, dtype):
                return f"_{n}" if dtype == "float32" else f"arg[{dtype}](_{n})"
            case ex.Index(axis):
                return f"at({axis})"
            case ex.Size(name):
                return f"size({name})"
            case ex.Op("cast", _, dtype):
                return f"cast[{dtype}]({args[0]})"
            case ex.Op(name, operands, dtype):
                implied = ex.op(name, *operands).dtype == dtype
                if implied and name in _INFIX:
                    return f"({args[0]} {_INFIX[name]} {args[1]})"
                return _PYTHON_NAME.get(name, name) + ("" if implied else f"[{dtype}]") + f"({', '.join(args)})"
        raise ValueError(f"an IR expression cannot contain {node}")

    text: str = ex.fold(expr, visit)
    return text
