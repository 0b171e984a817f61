"""The values that an integer expression can take, from its form alone."""

from __future__ import annotations

from attncc import expr as ex

INT32_MAX = 2**31 - 1


def int_range(expr: ex.Expr, longest: int = INT32_MAX) -> tuple[int, int]:
    """Least and largest value an integer expression can take, given that positions and sizes are at most `longest`."""

    def visit(node: ex.Expr, args: tuple[tuple[int, int], ...]) -> tuple[int, int]:
        limits = _dtype_range(node.dtype)
        match node:
            case ex.Const(value) if node.dtype not in ex.FLOATS:
                return int(value), int(value)
            case ex.Index() | ex.Size():
                return 0, longest
            case ex.Op(name) if node.dtype in ex.INTEGERS and all(a.dtype in ex.INTEGERS for a in node.args):
                corners = _corners(name, args)
                if corners and limits[0] <= min(corners) and max(corners) <= limits[1]:
                    return min(corners), max(corners)
        return limits

    result: tuple[int, int] = ex.fold(expr, visit)
    return result


def _corners(name: str, args: tuple[tuple[int, int], ...]) -> list[int]:
    """Values whose hull holds every result of a monotone integer operator; none for the other operators."""
    match name, args:
        case "add", ((a, b), (c, d)):
            return [a + c, b + d]
        case "sub", ((a, b), (c, d)):
            return [a - d, b - c]
        case "mul", ((a, b), (c, d)):
            return [a * c, a * d, b * c, b * d]
        case ("neg", ((a, b),)):
            return [-a, -b]
        case "abs", ((a, b),):
            return [0, max(abs(a), abs(b))]
        case "min", ((a, b), (c, d)):
            return [min(a, c), min(b, d)]
        case "max", ((a, b), (c, d)):
            return [max(a, c), max(b, d)]
        case "cast", ((a, b),):
            return [a, b]
        case "where", (_, (a, b), (c, d)):
            return [min(a, c), max(b, d)]
    return []


def _dtype_range(dtype: str) -> tuple[int, int]:
    if dtype == "bool":
        return 0, 1
    bits = int(dtype.lstrip("uint")) if dtype in ex.INTEGERS else 64
    return (0, 2**bits - 1) if dtype.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def narrows(expr: ex.Expr, longest: int = INT32_MAX) -> bool:
    """Whether int32 arithmetic gives the value of an int64 expression."""
    return all(_narrows(node, longest) for node in expr.walk())


def _narrows(node: ex.Expr, longest: int) -> bool:
    """The same for one node, if it holds for the nodes below."""
    if isinstance(node, ex.Op) and node.name not in ("add", "sub", "mul", "neg", "abs", "min", "max"):
        return False
    low, high = int_range(node, longest)
    known = node.dtype == "int32" or isinstance(node, (ex.Const, ex.Index, ex.Size, ex.Op))
    return known and low >= -INT32_MAX - 1 and high <= INT32_MAX
