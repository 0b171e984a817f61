"""Schedule families for tests: kernels that are right, crash, hang or compute wrongly, as a decision says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from attncc.schedules.cpu.fallback import Fallback
from attncc.schedules.family import Decisions, Launch, Problem
from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule

RIGHT, CRASHES, HANGS, WRONG, UNBUILDABLE = range(5)


@dataclass(frozen=True)
class Treacherous(Fallback):
    """`Fallback`, whose decision `mischief` says what goes wrong."""

    name: str = "test.treacherous"
    regime: Literal["prefill", "decode", "any"] = "any"

    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        return {"query_block": 8, "key_block": 32, "mischief": RIGHT}

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        return {"query_block": (4, 8), "key_block": (32,), "mischief": (RIGHT, CRASHES, HANGS, WRONG, UNBUILDABLE)}

    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        mischief = decisions["mischief"]
        if mischief == UNBUILDABLE:
            raise ValueError("these decisions do not go together")
        tiles = {name: decisions[name] for name in ("query_block", "key_block")}
        return super().module(spec, target, tiles) if mischief in (RIGHT, WRONG) else _broken(spec, mischief)

    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        found = super().launch(spec, decisions, problem)
        return Launch(found.work[:-1]) if decisions["mischief"] == WRONG else found


_CRASH = """
define i32 @attncc_test_mischief(i64 %at) {
  %place = inttoptr i64 %at to ptr
  store volatile i32 1, ptr %place
  ret i32 0
}
"""
_HANG = """
define i32 @attncc_test_mischief(i64 %at) {
entry:
  br label %again
again:
  %zero = load volatile i64, ptr @attncc_test_zero
  %done = icmp ne i64 %zero, 0
  br i1 %done, label %end, label %again
end:
  ret i32 0
}
@attncc_test_zero = internal global i64 0
"""


def _broken(spec: AttentionSpec, mischief: int) -> IRModule:
    """A kernel with the arguments of `spec`'s that writes to no man's memory, or never returns."""
    from attncc._tvm import IRBuilder, IRModule, T
    from attncc.algorithm.signature import NAME, declare, import_llvm, use_launcher

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        use_launcher(declare(spec))
        import_llvm(_CRASH if mischief == CRASHES else _HANG)
        T.evaluate(T.call_extern("int32", "attncc_test_mischief", T.int64(64)))
    return IRModule({NAME: builder.get()})
