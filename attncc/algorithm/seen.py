"""What is seen of a condition along rows of a tensor: a function in LLVM IR that looks at many elements at once.

A tensor's strides are known when the kernel runs. Where elements follow each other, vectors of them are compared at a
time; a loop in TIR could not tell, and would read each by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Literal

from attncc import expr as ex
from attncc._tvm import T, tirx
from attncc.algorithm.knowledge import Fact, infinite
from attncc.algorithm.pair_loads import pair_loads
from attncc.algorithm.visibility import HIDDEN_BIAS, not_hiding

Test = tuple[Literal["true", "counts", "infinite"], ex.Load]
"""That an element of a tensor is true; that, as a bias, it hides no key; that it is -inf."""

_TYPES = {"bool": "i8", "float32": "float", "float64": "double", "bfloat16": "i16", "float16": "i16"}
_BYTES = {"i8": 1, "float": 4, "double": 8, "i16": 2}
_HALF_INFINITE = 0xFC00
"""The bits of -inf in float16, which has no other number below HIDDEN_BIAS."""

# facts[n] |= 1 where some, 2 where not all elements n edge <= j < (n + 1) edge of the row pass the test
_FUNCTION = """
define linkonce_odr hidden i32 @@NAME@(
    ptr noalias %row, i64 %stride, i64 %keys, i64 %edge, ptr noalias %facts, i64 %enough) noinline {
entry:
  %dense = icmp eq i64 %stride, 1
  br label %block_head
block_head:
  %n = phi i64 [ 0, %entry ], [ %n_next, %block_next ]
  %first = phi i64 [ 0, %entry ], [ %end, %block_next ]
  %n_next = add i64 %n, 1
  %end = add i64 %first, %edge
  %more = icmp slt i64 %first, %keys
  br i1 %more, label %block, label %done
block:
  %fact_address = getelementptr i64, ptr %facts, i64 %n
  %fact = load i64, ptr %fact_address, align 8
  %known = and i64 %fact, %enough
  %decided = icmp eq i64 %known, %enough
  br i1 %decided, label %block_next, label %look
look:
  %stop = call i64 @llvm.smin.i64(i64 %end, i64 %keys)
  %count = sub i64 %stop, %first
  %even = and i64 %count, -@LANES@
  %vectors = select i1 %dense, i64 %even, i64 0
  %vector_stop = add i64 %first, %vectors
  br label %vector_head
vector_head:
  %v = phi i64 [ %first, %look ], [ %v_next, %vector ]
  %true0 = phi i@LANES@ [ 0, %look ], [ %true1, %vector ]
  %false0 = phi i@LANES@ [ 0, %look ], [ %false1, %vector ]
  %v_more = icmp slt i64 %v, %vector_stop
  br i1 %v_more, label %vector, label %element_head
vector:
  %v_address = getelementptr @TYPE@, ptr %row, i64 %v
  %v_x = load <@LANES@ x @TYPE@>, ptr %v_address, align @BYTES@
@VECTOR@
  %v_true = bitcast <@LANES@ x i1> %v_test to i@LANES@
  %v_false = xor i@LANES@ %v_true, -1
  %true1 = or i@LANES@ %true0, %v_true
  %false1 = or i@LANES@ %false0, %v_false
  %v_next = add i64 %v, @LANES@
  br label %vector_head
element_head:
  %e = phi i64 [ %v, %vector_head ], [ %e_next, %element ]
  %true2 = phi i@LANES@ [ %true0, %vector_head ], [ %true3, %element ]
  %false2 = phi i@LANES@ [ %false0, %vector_head ], [ %false3, %element ]
  %e_more = icmp slt i64 %e, %stop
  br i1 %e_more, label %element, label %block_done
element:
  %e_offset = mul i64 %e, %stride
  %e_address = getelementptr @TYPE@, ptr %row, i64 %e_offset
  %e_x = load @TYPE@, ptr %e_address, align @BYTES@
@ELEMENT@
  %e_true = zext i1 %e_test to i@LANES@
  %e_false = xor i@LANES@ %e_true, 1
  %true3 = or i@LANES@ %true2, %e_true
  %false3 = or i@LANES@ %false2, %e_false
  %e_next = add i64 %e, 1
  br label %element_head
block_done:
  %some = icmp ne i@LANES@ %true2, 0
  %others = icmp ne i@LANES@ %false2, 0
  %seen_true = select i1 %some, i64 1, i64 0
  %seen_false = select i1 %others, i64 2, i64 0
  %seen = or i64 %seen_true, %seen_false
  %fact_now = or i64 %fact, %seen
  store i64 %fact_now, ptr %fact_address, align 8
  br label %block_next
block_next:
  br label %block_head
done:
  ret i32 0
}
"""

_DECLARATION = """
declare i64 @llvm.smin.i64(i64, i64)
"""


def test_of(fact: Fact) -> Test | None:
    """The test of single elements that a fact is about, or None where it is about anything else."""
    loads = pair_loads(fact.value)
    if fact.kind != "seen" or len(loads) != 1 or loads[0].dtype not in _TYPES:
        return None
    (load,) = loads
    if load.dtype == "bool":
        return ("true", load) if fact.value == load else None
    if fact.value == not_hiding(load):
        return "counts", load
    return ("infinite", load) if fact.value == infinite(load) else None


def look(test: Test, first: Any, stride: Any, keys: Any, edge: int, facts: Any, enough: int) -> None:
    """Add to the facts (int64, from the element `facts` on) what `keys` elements show, `edge` of them to a fact.

    They start at the element `first` and are `stride` apart. A fact that has the bits `enough` is left alone. The
    kernel has imported `llvm_text` of the test, and the open block states what it accesses.
    """
    addresses = tirx.address_of(first), tirx.address_of(facts)
    arguments = [addresses[0], stride, keys, T.int64(edge), addresses[1], T.int64(enough)]
    T.evaluate(T.call_extern("int32", _name(test), *arguments))


def llvm_text(tests: Iterable[Test]) -> str:
    """The functions that `look` calls for these tests."""
    functions = {_name(test): _function(test) for test in tests}
    return "".join([*functions.values(), _DECLARATION]) if functions else ""


def _name(test: Test) -> str:
    return f"attncc_seen_{test[0]}_{test[1].dtype}"


def _function(test: Test) -> str:
    kind, load = test
    scalar = _TYPES[load.dtype]
    lanes = 32 if scalar == "i8" else 16
    text = _FUNCTION.replace("@VECTOR@", _compare("v", kind, load.dtype, lanes))
    text = text.replace("@ELEMENT@", _compare("e", kind, load.dtype, 1)).replace("@NAME@", _name(test))
    return text.replace("@LANES@", str(lanes)).replace("@TYPE@", scalar).replace("@BYTES@", str(_BYTES[scalar]))


def _compare(prefix: str, kind: str, dtype: str, lanes: int) -> str:
    """%…_test of %…_x, both vectors of `lanes`, or scalars for 1."""

    def of(scalar: str) -> str:
        return f"<{lanes} x {scalar}>" if lanes > 1 else scalar

    def every(scalar: str, value: str) -> str:
        return f"<{', '.join([f'{scalar} {value}'] * lanes)}>" if lanes > 1 else value

    x, test = f"%{prefix}_x", f"  %{prefix}_test ="
    if dtype == "bool":
        return f"{test} icmp ne {of('i8')} {x}, {every('i8', '0')}"
    if dtype == "float16":
        return (
            f"{test} icmp {'eq' if kind == 'infinite' else 'ne'} {of('i16')} {x}, {every('i16', str(_HALF_INFINITE))}"
        )
    lines, scalar = [], _TYPES[dtype]
    if dtype == "bfloat16":
        lines = [
            f"  %{prefix}_wide = zext {of('i16')} {x} to {of('i32')}",
            f"  %{prefix}_bits = shl {of('i32')} %{prefix}_wide, {every('i32', '16')}",
            f"  %{prefix}_float = bitcast {of('i32')} %{prefix}_bits to {of('float')}",
        ]
        x, scalar = f"%{prefix}_float", "float"
    if kind == "infinite":
        lines.append(f"{test} fcmp oeq {of(scalar)} {x}, {every(scalar, _literal(float('-inf'), scalar))}")
    else:  # NaN counts
        lines.append(f"{test} fcmp ugt {of(scalar)} {x}, {every(scalar, _literal(HIDDEN_BIAS, scalar))}")
    return "\n".join(lines)


def _literal(value: float, scalar: str) -> str:
    """A floating-point constant as LLVM writes it: the bits of the double that equals it."""
    if scalar == "float":
        (value,) = struct.unpack("f", struct.pack("f", value))
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
