"""The one door to TVM: every other module takes TVM's names from here, and only here is it known where 0.27 keeps them.

Importing this module imports TVM (seconds), so the rest of the package imports it where a kernel is built, never at the
top of what `import attncc` touches.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule, TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import Buffer, PrimFunc, Var

__all__ = [
    "Buffer", "IRBuilder", "IRModule", "PrimFunc", "Schedule", "T", "Target", "TensorIntrin", "Var",
    "compile_module", "s_tir", "tirx", "tvm",
]  # fmt: skip


def compile_module(module: IRModule, target: Target) -> Any:
    """`tvm.compile`, without TVM's common subexpression elimination.

    TVM 0.27 moves an expression that is also used inside a `Let` out of the scope of its other uses, and LLVM then
    rejects the module. LLVM eliminates common subexpressions by itself.
    """
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        return tvm.compile(module, target=target)
