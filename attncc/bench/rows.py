"""The rows of `attncc bench --suite cpu`: regimes of attention, each with its cases, its peers and its bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from attncc.bench import bars, processes
from attncc.bench.bars import Bar, Finding
from attncc.bench.cases import Case
from attncc.bench.run import Result
from attncc.target import detect

FAST = ("sdpa", "attncc")
ENGINES = ("eager", "sdpa", "openvino", "onnxruntime", "attncc")
ALL = ("eager", "sdpa", "flex", "flex-dense", "inductor", "openvino", "onnxruntime", "attncc")


@dataclass(frozen=True)
class Trial:
    """A case, who takes part, and what attncc computes beside it to hold it against."""

    case: Case
    names: tuple[str, ...] = FAST
    variants: Mapping[str, Case] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A regime. It is measured by trials, or by a function of its own (`measure`)."""

    name: str
    title: str
    """The bar in words."""
    trials: Callable[[bool], Iterator[Trial]] = lambda quick: iter(())
    bars: tuple[Bar, ...] = ()
    measure: Callable[[bool], tuple[Finding, ...]] | None = None


def _long(result: Result) -> bool:
    return result.case.q_len >= 1024


def _prefill(dtype: str) -> Callable[[bool], Iterator[Trial]]:
    def trials(quick: bool) -> Iterator[Trial]:
        for length in (1024,) if quick else (512, 1024, 2048, 4096, 8192):
            for width in (64,) if quick else (64, 128):
                case = Case(q_len=length, kv_len=length, head_dim=width, dtype=dtype)
                names = ALL if (length, width) == (2048, 64) else ENGINES
                yield Trial(case, names, {"float32": replace(case, dtype="float32")} if dtype == "float16" else {})

    return trials


def _masks(quick: bool) -> Iterator[Trial]:
    for dtype, lengths in (("float32", (1024, 2048, 4096, 8192)), ("bfloat16", (1024, 4096))):
        for length in lengths[:1] if quick else lengths:
            plain = Case(q_len=length, kv_len=length, dtype=dtype)
            causal = replace(plain, causal=True)
            masked = (
                causal,
                replace(causal, window=256),
                replace(causal, prefix=length // 4),
                replace(plain, documents=8),
            )
            for case in masked[:2] if quick and dtype == "bfloat16" else masked:
                peers = ("sdpa", "sdpa-tensor") if case.only_causal else ("sdpa-tensor",)
                more = ("flex", "inductor", "openvino", "onnxruntime") if length == 4096 else ()
                yield Trial(case, (*peers, *more, "attncc"), {"unmasked": plain})


def _scores(quick: bool) -> Iterator[Trial]:
    for dtype in ("float32", "bfloat16"):
        for length in (1024,) if quick else (1024, 4096):
            plain = Case(q_len=length, kv_len=length, dtype=dtype)
            for score in ("softcap", "alibi") if quick else ("alibi", "softcap", "relative", "t5"):
                peers = ("sdpa",) if quick else ("sdpa", "flex", "flex-dense")
                more = ("inductor", "openvino", "onnxruntime") if length == 1024 and not quick else ()
                yield Trial(replace(plain, score=score), (*peers, *more, "attncc"), {"plain": plain})


def _is_bf16_softcap(result: Result) -> bool:
    return result.case.score == "softcap" and result.case.dtype == "bfloat16"


def _bilinear(quick: bool) -> Iterator[Trial]:
    for dtype in ("float32", "bfloat16"):
        for width in (64,) if quick else (64, 128):
            for length in (1024,) if quick else (1024, 4096):
                plain = Case(q_len=length, kv_len=length, head_dim=width, dtype=dtype)
                yield Trial(replace(plain, bilinear=True), FAST, {"plain": plain})


def _short(quick: bool) -> Iterator[Trial]:
    for dtype, widths in (("float32", (64, 32)), ("bfloat16", (64,))):
        for batch in (1, 32) if quick else (1, 4, 32):
            for length in (8, 128) if quick else (8, 16, 32, 64, 128):
                for width in widths[:1] if quick else widths:
                    case = Case(batch, 12, 12, length, length, width, dtype)
                    compiled = ("sdpa-graph", "captured") if width == 64 and not quick else ()
                    engines = ("openvino", "onnxruntime") if width == 64 and length in (16, 128) else ()
                    yield Trial(case, ("sdpa", *compiled, *engines, "attncc"))


def _slow_sdpa(result: Result) -> bool:
    return (result.seconds("sdpa") or 0.0) >= 30e-6


def _decode(quick: bool) -> Iterator[Trial]:
    grid = [
        *((1, heads, length) for heads in (32, 8) for length in (128, 1024, 4096, 16384, 65536)),
        *((1, 4, length) for length in (4096, 65536)),
        *((batch, heads, 4096) for batch in (4, 16) for heads in (32, 8)),
    ]
    for dtype in ("float32", "bfloat16"):
        for batch, kv_heads, length in ((1, 32, 4096), (1, 8, 4096)) if quick else grid:
            case = Case(batch, 32, kv_heads, 1, length, 128, dtype)
            if case.bytes_read > MOST_BYTES:
                continue
            names = ALL if (kv_heads, batch, length) == (8, 1, 4096) and not quick else ENGINES
            yield Trial(case, FAST if quick or batch * length > 16384 else names)


MOST_BYTES = 2200 << 20
"""Of a cache that is measured."""


def _beyond_cache(result: Result) -> bool:
    return result.case.bytes_read > detect().l3


def _beyond_cache_in(dtype: str) -> Callable[[Result], bool]:
    return lambda result: _beyond_cache(result) and result.case.dtype == dtype


def _caches(quick: bool) -> Iterator[Trial]:
    for cache in ("int8", "float8_e4m3fn") if quick else ("int8", "float8_e4m3fn", "float8_e5m2"):
        for kv_heads in (8,) if quick else (32, 8):
            plain = Case(1, 32, kv_heads, 1, 4096 if quick else 32768, 128, "bfloat16")
            if plain.bytes_read <= MOST_BYTES:
                yield Trial(replace(plain, cache=cache), FAST, {"bfloat16 cache": plain})


def _few_rows(quick: bool) -> Iterator[Trial]:
    for dtype in ("float32", "bfloat16"):
        for kv_heads in (32,) if quick else (32, 8):
            for rows, tree in ((4, False), (16, True)) if quick else ((2, 0), (4, 0), (8, 0), (16, 0), (8, 1), (16, 1)):
                case = Case(1, 32, kv_heads, rows, 4096, 128, dtype, tree=bool(tree))
                yield Trial(case, FAST, {"one row": replace(case, q_len=1, tree=False)})


def _odd_heads(quick: bool) -> Iterator[Trial]:
    for dtype in ("float32", "bfloat16"):
        base = Case(q_len=1024, kv_len=1024, dtype=dtype)
        for width in (80, 100) if quick else (40, 72, 80, 96, 100, 192, 256, 576):
            yield Trial(replace(base, head_dim=width), FAST, {"D64": base})
        yield Trial(replace(base, head_dim=192, value_dim=128), FAST, {"D64": base})


def _imbalance(quick: bool) -> Iterator[Trial]:
    length = 2048 if quick else 4096
    for dtype in ("float32", "bfloat16"):
        square = Case(1, 1, 1, length, length, 64, dtype)
        some = (square, replace(square, causal=True))
        more = (
            replace(square, heads=3, kv_heads=3, causal=True),
            Case(1, 1, 1, 16, 65536, 128, dtype),
            Case(1, 1, 1, 1, 262144, 128, dtype),
        )
        for case in some if quick else (*some, *more):
            yield Trial(case, FAST, {"one thread": replace(case, threads=1)})


def _outputs(quick: bool) -> Iterator[Trial]:
    length = 512 if quick else 1024
    for dtype in ("float32",) if quick else ("float32", "bfloat16"):
        plain = Case(q_len=length, kv_len=length, dtype=dtype)
        causal = replace(plain, causal=True)
        for case in (plain, causal):
            for outputs in ("lse", "weights"):
                yield Trial(replace(case, outputs=outputs), ("eager", "attncc"), {"plain": case})
        decode = Case(1, 32, 8, 1, 4096, 128, dtype)
        yield Trial(replace(decode, outputs="lse"), ("eager", "attncc"), {"plain": decode})


def _float64(quick: bool) -> Iterator[Trial]:
    length = 512 if quick else 1024
    plain = Case(q_len=length, kv_len=length, dtype="float64")
    causal = replace(plain, causal=True)
    decode = Case(1, 32, 8, 1, 4096, 128, "float64")
    weights = (replace(plain, outputs="weights"), replace(causal, outputs="weights"))
    for case in (plain, decode) if quick else (plain, causal, *weights, decode):
        yield Trial(case, ("eager", "sdpa", "attncc"))


def _lse(result: Result) -> bool:
    return result.case.outputs == "lse"


def _weights(result: Result) -> bool:
    return result.case.outputs == "weights"


CPU: tuple[Row, ...] = (
    Row(
        "prefill-fp32",
        "at least 82% of peak at S >= 1024, and 2.4x SDPA",
        _prefill("float32"),
        (bars.roofline(0.82, _long), bars.faster(2.4, "sdpa", _long)),
    ),
    Row(
        "prefill-bf16",
        "at least 78% of the bfloat16 peak at S >= 1024, and 4.5x SDPA",
        _prefill("bfloat16"),
        (bars.roofline(0.78, _long), bars.faster(4.5, "sdpa", _long)),
    ),
    Row(
        "prefill-fp16",
        "at least float32's speed, and no less exact than SDPA",
        _prefill("float16"),
        (bars.faster(1.0, "float32"), bars.as_exact("sdpa")),
    ),
    Row(
        "masks",
        "time within 15% of the visited share of key blocks; at least 3x SDPA with the mask as a tensor",
        _masks,
        (bars.in_proportion(1.15, "unmasked"), bars.faster(3.0, "sdpa-tensor")),
    ),
    Row(
        "scores",
        "at most 1.25x plain attention (soft cap in bfloat16 1.5x); at least 4x FlexAttention, with BlockMask and not",
        _scores,
        (
            bars.within(1.25, "plain", lambda result: not _is_bf16_softcap(result)),
            bars.within(1.5, "plain", _is_bf16_softcap),
            bars.faster(4.0, "flex"),
            bars.faster(4.0, "flex-dense"),
        ),
    ),
    Row("bilinear", "at most 1.15x scaled dot product", _bilinear, (bars.within(1.15, "plain"),)),
    Row(
        "short",
        "at least 1.5x SDPA where that takes 30 µs, never slower below; called and captured",
        _short,
        (
            bars.faster(1.5, "sdpa", _slow_sdpa),
            bars.faster(1.0, "sdpa", lambda result: not _slow_sdpa(result)),
            bars.faster(1.5, "sdpa-graph", _slow_sdpa, "captured"),
            bars.faster(1.0, "sdpa-graph", lambda result: not _slow_sdpa(result), "captured"),
        ),
    ),
    Row(
        "decode",
        "beyond L3, at least 85% of read bandwidth, 8x SDPA in bfloat16 and 2x in float32",
        _decode,
        (
            bars.roofline(0.85, _beyond_cache),
            bars.faster(8.0, "sdpa", _beyond_cache_in("bfloat16")),
            bars.faster(2.0, "sdpa", _beyond_cache_in("float32")),
        ),
    ),
    Row(
        "caches",
        "int8 and float8 caches beyond L3: at least 85% of read bandwidth, and faster than in bfloat16",
        _caches,
        (bars.roofline(0.85, _beyond_cache), bars.faster(1.0, "bfloat16 cache")),
    ),
    Row("few-rows", "cost grows less than linearly in rows", _few_rows, (bars.less_than_linear("one row"),)),
    Row("odd-heads", "at least 70% of the rate of D = 64", _odd_heads, (bars.same_rate(0.7, "D64"),)),
    Row("imbalance", "at least 1.8x of one thread", _imbalance, (bars.faster(1.8, "one thread"),)),
    Row(
        "outputs",
        "lse within 5% of plain attention, weights no slower than eager",
        _outputs,
        (bars.within(1.05, "plain", _lse), bars.faster(1.0, "eager", _weights)),
    ),
    Row(
        "float64",
        "no slower than eager, nor than SDPA",
        _float64,
        (bars.faster(1.0, "eager"), bars.faster(1.0, "sdpa")),
    ),
    Row("memory", "workspace never O(S²): peak RSS at S = 32768", measure=processes.memory),
    Row("linear", "alternating with linear layers at most 1.1x the sum of both", measure=processes.alternating),
)
