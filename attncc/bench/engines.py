"""Attention of inference engines, where they are installed (`pip install attncc[bench]`): OpenVINO and ONNX Runtime.

Each gets its own operator for attention, masks and biases written out as its input, all operands in the memory layout
that it likes before the clock starts, and as many threads as torch has. Both raise `Absent` with the reason where they
have no such attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from attncc.bench.cases import Case

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
MaskOf = Callable[["Case"], Tensor | None]


class Absent(Exception):
    """A contender has no such attention, or is not installed; the message says which."""


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise Absent("not installed: pip install attncc[bench]") from None


def _plain(case: Case, engine: str, *known: str) -> None:
    """Raise `Absent` for what no engine's operator can say."""
    if case.bilinear:
        raise Absent(f"{engine}'s attention has no bilinear score")
    if case.cache is not None:
        raise Absent(f"{engine}'s attention has no quantised cache")
    if case.outputs:
        raise Absent(f"{engine}'s attention gives no {case.outputs}")
    if case.dtype not in known:
        raise Absent(f"{engine} has no attention in {case.dtype}")


def openvino(case: Case, mask_of: MaskOf) -> Attention:
    """OpenVINO's ScaledDotProductAttention on [B, H, S, D], computing in the dtype of the case."""
    _plain(case, "OpenVINO", "float32", "bfloat16", "float16")
    ov, op = _imported("openvino"), _imported("openvino.opset13")
    dtype = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16, "float16": ov.Type.f16}[case.dtype]
    causal, mask = _flag_or_mask(case, mask_of)
    batch, group = case.batch, case.heads // case.kv_heads
    q = op.parameter([batch, case.heads, case.q_len, case.head_dim], dtype)
    k = op.parameter([batch, case.kv_heads, case.kv_len, case.head_dim], dtype)
    v = op.parameter([batch, case.kv_heads, case.kv_len, case.columns], dtype)
    operands = [q, *(_repeated(ov, op, tensor, group, case) for tensor in (k, v))]
    if mask is not None:
        operands.append(_constant(ov, op, mask, dtype))
    result = op.scaled_dot_product_attention(*operands, causal=causal)
    precision = "bf16" if case.dtype == "bfloat16" else "f32"
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(ov.Model([result], [q, k, v]), "CPU", settings | {"PERFORMANCE_HINT": "LATENCY"})
    request = compiled.create_infer_request()
    out = torch.empty(batch, case.heads, case.q_len, case.columns, dtype=case.torch_dtype)
    request.set_output_tensor(_view(ov, out, dtype))
    bound: list[Tensor] = []

    def attention(*operands: Tensor) -> Tensor:
        if not _same(bound, operands):
            bound[:] = operands
            held = [t.contiguous() for t in operands]
            for index, tensor in enumerate(held):
                request.set_input_tensor(index, _view(ov, tensor, dtype))
            bound.extend(held)
        request.infer()
        return out

    return attention


def _repeated(ov: Any, op: Any, tensor: Any, group: int, case: Case) -> Any:
    """Each key head `group` times in a row, as exported models of grouped heads write it."""
    if group == 1:
        return tensor
    batch, heads, length, width = (int(n) for n in tensor.shape)
    wide = op.unsqueeze(tensor, op.constant([2]))
    wide = op.broadcast(wide, op.constant([batch, heads, group, length, width]))
    return op.reshape(wide, op.constant([batch, heads * group, length, width]), False)


def _constant(ov: Any, op: Any, mask: Tensor, dtype: Any) -> Any:
    if mask.dtype == torch.bool:
        return op.constant(mask.numpy())
    return op.convert(op.constant(mask.numpy()), dtype)


def _view(ov: Any, tensor: Tensor, dtype: Any) -> Any:
    """The memory of a contiguous tensor, without a copy. (NumPy has no bfloat16: its bits go as float16's.)"""
    array = tensor.view(torch.float16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()
    return ov.Tensor(array, ov.Shape(list(tensor.shape)), dtype)


def onnxruntime(case: Case, mask_of: MaskOf) -> Attention:
    """ONNX Runtime's MultiHeadAttention on [B, S, H · D]; where it does not serve, ONNX's Attention on [B, H, S, D]."""
    softcap = case.score == "softcap"
    _plain(case, "ONNX Runtime", "float32", "float16")
    ort = _imported("onnxruntime")
    causal, mask = (case.causal, None) if softcap and not case.masked else _flag_or_mask(case, mask_of)
    flat = case.heads == case.kv_heads and case.columns == case.head_dim and not softcap and not case.decode
    if mask is not None:
        mask = _as_bias(case, mask)
    model = _onnx_model(case, causal, None if mask is None else mask.shape, flat, softcap)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # its threads would go on spinning while the next contender is timed
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    kind = {"float32": "float32", "float16": "float16"}[case.dtype]
    size = (case.batch, case.heads, case.q_len, case.columns)
    held_out = torch.empty(_flat(size) if flat else size, dtype=case.torch_dtype)
    out = held_out.unflatten(2, (case.heads, -1)).transpose(1, 2) if flat else held_out
    bound: list[Tensor] = []

    def bind(put: Any, name: str, tensor: Tensor) -> None:
        put(name, "cpu", 0, _imported("numpy").dtype(kind), list(tensor.shape), tensor.data_ptr())

    def attention(*operands: Tensor) -> Tensor:
        if not _same(bound, operands):
            held = [t.transpose(1, 2).flatten(2).contiguous() if flat else t.contiguous() for t in operands]
            bound[:] = [*operands, *held]
            for name, tensor in zip("qkv", held, strict=True):
                bind(binding.bind_input, name, tensor)
            if mask is not None:
                bind(binding.bind_input, "mask", mask)
            bind(binding.bind_output, "out", held_out)
        session.run_with_iobinding(binding)
        return out

    return attention


def _onnx_model(case: Case, causal: bool, mask: Any, flat: bool, softcap: bool) -> Any:
    """A model of one operator."""
    onnx = _imported("onnx")
    from attncc.bench.scores import CAP

    kind = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16}[case.dtype]
    sizes: dict[str, tuple[int, ...]] = {
        "q": (case.batch, case.heads, case.q_len, case.head_dim),
        "k": (case.batch, case.kv_heads, case.kv_len, case.head_dim),
        "v": (case.batch, case.kv_heads, case.kv_len, case.columns),
        "out": (case.batch, case.heads, case.q_len, case.columns),
    }
    if flat:
        sizes = {name: _flat(size) for name, size in sizes.items()}
    inputs = {name: sizes[name] for name in "qkv"} | ({"mask": tuple(mask)} if mask is not None else {})
    values = {name: onnx.helper.make_tensor_value_info(name, kind, size) for name, size in {**inputs, **sizes}.items()}
    if flat:
        names = [*"qkv", "", "", "mask"] if mask is not None else list("qkv")
        fields = {"domain": "com.microsoft", "num_heads": case.heads, "unidirectional": int(causal)}
        node = onnx.helper.make_node("MultiHeadAttention", names, ["out"], **fields)
    else:
        fields = {"is_causal": int(causal)} | ({"softcap": CAP} if softcap else {})
        node = onnx.helper.make_node("Attention", list(inputs), ["out"], **fields)
    graph = onnx.helper.make_graph([node], "attention", [values[name] for name in inputs], [values["out"]])
    versions = [onnx.helper.make_opsetid("", 23), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=versions, ir_version=10)


def _flat(size: Sequence[int]) -> tuple[int, ...]:
    batch, heads, length, width = size
    return batch, length, heads * width


def _flag_or_mask(case: Case, mask_of: MaskOf) -> tuple[bool, Tensor | None]:
    """Whether the operator's own causal flag says it all, else the mask or bias written out."""
    if case.causal and case.only_causal and case.score is None and case.q_len == case.kv_len:
        return True, None
    return False, mask_of(case)


def _as_bias(case: Case, mask: Tensor) -> Tensor:
    """A mask as what is added to scores, [1 or B, 1 or H, Sq, Skv] in the dtype of the case, contiguous."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(case.torch_dtype).min)
    return mask.clamp(min=torch.finfo(case.torch_dtype).min).to(case.torch_dtype).contiguous()


def _same(bound: list[Tensor], operands: tuple[Tensor, ...]) -> bool:
    return len(bound) > 2 and all(a is b for a, b in zip(bound, operands, strict=False))
