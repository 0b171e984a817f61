"""The one door to TVM: every other module takes TVM's names from here, and only here is it known where 0.27 keeps them.

Importing this module imports TVM (seconds), so the rest of the package imports it where a kernel is built, never at the
top of what `import attncc` touches.
"""

from __future__ import annotations

import tvm
from tvm import s_tir, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule, TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import Buffer, PrimFunc, Var

__all__ = ["Buffer", "IRBuilder", "IRModule", "PrimFunc", "Schedule", "T", "Target", "TensorIntrin", "Var", "s_tir", "tirx", "tvm"]
