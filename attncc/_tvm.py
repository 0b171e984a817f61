"""The one door to TVM: every other module takes TVM's names from here, and only here is it known where 0.27 keeps them.

Importing this module imports TVM (seconds), so the rest of the package imports it where a kernel is built, never at the
top of what `import attncc` touches.
"""

from __future__ import annotations

import re
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule, TensorIntrin
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.target import Target
from tvm.tirx import Buffer, PrimFunc, Var

from attncc.target import Target as CpuTarget

__all__ = [
    "Buffer", "IRBuilder", "IRModule", "PrimFunc", "Schedule", "T", "Target", "TensorIntrin", "Var",
    "compile_module", "cuda_source", "llvm_target", "llvm_text", "s_tir", "tirx", "tvm",
]  # fmt: skip


def compile_module(module: IRModule, target: Target) -> Any:
    """`tvm.compile`, with register tiles on the stack and without TVM's common subexpression elimination.

    TVM 0.27 moves an expression that is also used inside a `Let` out of the scope of its other uses, and LLVM then
    rejects the module. LLVM eliminates common subexpressions by itself.
    """
    from tvm.tirx.compilation_pipeline import register_tir_pipeline

    register_tir_pipeline(_CPU_PIPELINE, _cpu_pipeline)
    with tvm.transform.PassContext(config={"tirx.disable_cse_tir": True}):
        return tvm.compile(module, target=target, tir_pipeline=_CPU_PIPELINE)


_CPU_PIPELINE = "attncc.cpu"


def _cpu_pipeline() -> tuple[Any, Any, Any]:
    """TVM's pipeline, and `_on_stack` before the pass that turns scratch buffers into calls of an allocator."""
    from tvm.tirx.compilation_pipeline import get_tir_pipeline

    pipeline, host, device = get_tir_pipeline("s_tir")
    return pipeline, lambda: tvm.transform.Sequential([_on_stack(), host()]), device


def _on_stack() -> Any:
    """A pass that leaves buffers of scope "local" to LLVM, as variables on the stack.

    What is only ever used at constant places then becomes registers. Memory of an allocator would be written all the
    same: sixteen stores a register tile, which nothing reads.
    """

    def function(func: PrimFunc, module: IRModule, context: Any) -> PrimFunc:
        return func.with_body(_kept_local(func.body))

    return tirx.transform.prim_func_pass(function, opt_level=0, name="attncc.on_stack")


def _kept_local(stmt: Any) -> Any:
    """A statement whose "local" buffers are told to stay as they are."""
    match stmt:
        case tirx.AllocBuffer(buffer=buffer) if buffer.scope() == "local":
            return tirx.AllocBuffer(buffer, {**stmt.annotations, "disable_lower_builtin": tirx.const(1, "bool")})
        case tirx.SeqStmt():
            return tirx.SeqStmt([_kept_local(each) for each in stmt.seq])
        case tirx.For():
            body = _kept_local(stmt.body)
            return tirx.For(
                stmt.loop_var, stmt.min, stmt.extent, stmt.kind, body, stmt.thread_binding, stmt.annotations, stmt.step
            )
        case tirx.AttrStmt():
            return tirx.AttrStmt(stmt.node, stmt.attr_key, stmt.value, _kept_local(stmt.body))
        case tirx.IfThenElse():
            other = None if stmt.else_case is None else _kept_local(stmt.else_case)
            return tirx.IfThenElse(stmt.condition, _kept_local(stmt.then_case), other)
    return stmt


def llvm_target(target: CpuTarget) -> Target:
    """TVM's target for ours."""
    options: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.mcpu}
    if target.sve_bits:  # for LLVM's optimiser; its code generator is told by `llvm_text`
        options["cl-opt"] = [f"-aarch64-sve-vector-bits-min:uint={target.sve_bits}"]
    return Target({**options, "mattr": list(target.mattr)})


def llvm_text(module: IRModule, target: CpuTarget) -> str:
    """`module` compiled for `target`, as LLVM IR.

    Where SVE's vectors have a known length, functions say so: LLVM then keeps TIR's vectors of that length in them.
    """
    text: str = compile_module(module, llvm_target(target)).mod.inspect_source("ll")
    if not target.sve_bits:
        return text
    length = target.sve_bits // 128
    return re.sub(
        r'^(attributes #\d+ = \{)(?=.* "target-cpu"=)', rf"\1 vscale_range({length},{length})", text, flags=re.MULTILINE
    )


def cuda_source(module: IRModule, arch: str) -> str:
    """CUDA C++ of a module's kernels for `arch` ("sm_90a") with their host wrappers, which need tvm_ffi alone."""
    from tvm.backend.cuda import export_cuda_host
    from tvm.tirx.compilation_pipeline import register_tir_pipeline

    register_tir_pipeline(_CUDA_PIPELINE, _cuda_pipeline)
    target = Target({"kind": "cuda", "arch": arch}, host="cuda_host")
    source: str = export_cuda_host(tvm.compile(module, target=target, tir_pipeline=_CUDA_PIPELINE).mod)
    return source


_CUDA_PIPELINE = "attncc.cuda"


def _cuda_pipeline() -> tuple[Any, Any, Any]:
    """TVM's passes for tirx but for common subexpression elimination (see `compile_module`): nvcc does that by itself,
    and TVM's own pipeline cannot be told to leave it out.
    """
    from tvm.backend.cuda import transforms as cuda_passes
    from tvm.tirx import compilation_pipeline

    passes = tirx.transform
    lowering = [
        passes.LowerTIRx(), tvm.s_tir.transform.UnifyThreadBinding(), passes.StmtSimplify(), passes.LowerTIRxOpaque(),
        passes.FlattenBuffer(), passes.BF16ComputeLegalize(), passes.NarrowDataType(32), passes.VectorizeLoop(),
        passes.UnrollLoop(), passes.StmtSimplify(), passes.FP8ComputeLegalize(), passes.VerifyMemory(),
        passes.AnnotateEntryFunc(), passes.SplitHostDevice(), cuda_passes.LowerIket(), passes.MakePackedAPI(),
        passes.FP8StorageLegalize(), passes.BF16StorageLegalize(),
    ]  # fmt: skip
    host, device = compilation_pipeline.finalize_host_passes, compilation_pipeline.finalize_device_passes
    return tvm.transform.Sequential(lowering), host, device
