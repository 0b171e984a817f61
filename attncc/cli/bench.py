"""`attncc bench`: attention at given shapes, checked against float64, then timed against other ways to compute it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from attncc.bench.cases import Case

EXAMPLES = (
    "[bold]Examples[/]\n\nattncc bench --quick\n\nattncc bench --seq 2048 --dtype bfloat16 --causal\n\n"
    "attncc bench --regime decode --heads 32 --kv-heads 8 --kv-len 16384 --head-dim 128\n\n"
    "attncc bench --only sdpa,attncc --json\n\nattncc bench --compile-time\n\n"
    "attncc bench --suite cpu --save table.json --plot roofline.png --markdown table.md\n\n"
    "attncc bench --suite cpu --only decode,masks"
)


def bench(
    regime: Annotated[str | None, typer.Option(help="prefill or decode (one query row).")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size.")] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Query heads.")] = None,
    kv_heads: Annotated[int | None, typer.Option(min=1, help="Key heads; as many as query heads by default.")] = None,
    seq: Annotated[int | None, typer.Option(min=1, help="Query and key rows alike.")] = None,
    q_len: Annotated[int | None, typer.Option(min=1, help="Query rows.")] = None,
    kv_len: Annotated[int | None, typer.Option(min=1, help="Key rows.")] = None,
    head_dim: Annotated[int | None, typer.Option(min=1, help="Columns of a head.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or float64.")] = None,
    causal: Annotated[bool, typer.Option("--causal", help="Query i sees keys up to i.")] = False,
    window: Annotated[int | None, typer.Option(min=1, help="Query i sees keys nearer than this.")] = None,
    only: Annotated[str | None, typer.Option(help="Contenders, and rows of a suite, by comma.")] = None,
    turns: Annotated[int | None, typer.Option(min=1, help="Interleaved turns that a median is taken of.")] = None,
    masks: Annotated[bool, typer.Option("--masks", help="Windows, caches partly filled, padding, documents.")] = False,
    compile_time: Annotated[bool, typer.Option("--compile-time", help="Capture of models, beside Inductor.")] = False,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; on cuda a set of cases, of which --only names groups.")
    ] = "cpu",
    pack: Annotated[Path | None, typer.Option(help="Kernels that attncc cuda-pack wrote, for want of TVM.")] = None,
    suite: Annotated[str | None, typer.Option(help="A whole table of regimes, each with its bar: cpu.")] = None,
    save: Annotated[
        Path | None, typer.Option(help="JSON of the suite, written row by row; rows that it has are not run again.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture of the suite's roofline (needs attncc\\[bench]).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="The suite's tables as Markdown.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Short lengths, few turns.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check attention against float64, then time it against eager, SDPA, FlexAttention and Inductor.

    Without a shape, a set of prefill and decode cases runs; with --masks, a set of masks that hide most keys. Rates are
    also given as a share of the multiply-add peak or read bandwidth measured in the same run. Exit status 1 where
    attncc is outside its error bound; nothing is timed then. With --compile-time no attention is timed, but the
    compilation of models of 1 to 12 layers. --suite cpu measures every regime beside all peers that are installed.
    """
    from attncc.bench import hidden, peak, run
    from attncc.cli import _cuda
    from attncc.cli._console import progress, show, show_json
    from attncc.cli._suite import run_suite

    if device == "cuda":
        _cuda.run_cuda(pack, only, quick, json, save)
        return
    if suite is not None:
        run_suite(suite, only, quick, turns, json, save, plot, markdown)
        return
    if any(path is not None for path in (save, plot, markdown)):
        raise ValueError("--save, --plot and --markdown are for --suite cpu")
    if compile_time:
        _compile_time(quick, json)
        return
    shape = {"batch": batch, "heads": heads, "kv_heads": kv_heads, "q_len": q_len, "kv_len": kv_len}
    shape |= {"head_dim": head_dim, "window": window}
    chosen = _cases(shape, seq, dtype, causal, regime, quick, masks)
    names = _names(only)
    turns, seconds = (min(turns or 9, 3), 0.03) if quick else (turns or 9, 0.1)
    results = []
    with progress(peak.STEPS + len(chosen) * run.steps(names, turns)) as say:
        measured = peak.measure(progress=say)
        for case in chosen:
            results.append(run.run(case, measured, names=names, turns=turns, seconds=seconds, say=say))
            if not json:
                show(results[-1])
    beside = hidden.proportions(results, quick) if masks else None
    if json:
        show_json(run.to_json(measured, results, **({"hidden": beside.to_json()} if beside is not None else {})))
    elif beside is not None:
        show(beside)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _compile_time(quick: bool, json: bool) -> None:
    from attncc.bench import compile_time
    from attncc.cli._console import progress, show, show_json

    with progress(compile_time.STEPS) as say:
        times = compile_time.measure(compile_time.DEPTHS[:2] if quick else compile_time.DEPTHS, say)
    if json:
        show_json(times.to_json())
    else:
        show(times)


def _cases(
    shape: dict[str, int | None],
    seq: int | None,
    dtype: str | None,
    causal: bool,
    regime: str | None,
    quick: bool,
    masks: bool,
) -> tuple[Case, ...]:
    """The case that the options describe; a set of cases (of one regime) where they describe none."""
    from attncc.bench import hidden
    from attncc.bench.cases import Case, defaults

    if regime not in (None, "prefill", "decode"):
        raise ValueError(f"--regime {regime}: use prefill or decode")
    if seq is not None:
        if shape["q_len"] is not None or shape["kv_len"] is not None:
            raise ValueError("--seq sets both lengths: leave out --q-len and --kv-len")
        shape |= {"q_len": seq, "kv_len": seq}
    if regime == "decode":
        shape["q_len"] = shape["q_len"] if seq is None and shape["q_len"] is not None else 1
    given = {name: value for name, value in shape.items() if value is not None}
    plain = not causal and dtype is None and not given.keys() - ({"q_len"} if regime == "decode" else set())
    if masks and not plain:
        raise ValueError("--masks runs cases of its own: leave out shape, --dtype, --causal and --window")
    if plain:
        chosen = hidden.cases(quick) if masks else defaults(quick)
        return tuple(case for case in chosen if regime in (None, "decode" if case.decode else "prefill"))
    base = Case(1, 32, 32, 1, 4096, 128) if regime == "decode" else Case()
    heads = given.get("heads", base.heads)
    length = given.get("q_len", given.get("kv_len", base.q_len))
    lengths = {} if regime == "decode" else {"q_len": length, "kv_len": given.get("kv_len", length)}
    fields: dict[str, Any] = {**vars(base), "heads": heads, "kv_heads": heads, **lengths, **given, "causal": causal}
    return (Case(**{**fields, "dtype": dtype or base.dtype}),)


def _names(only: str | None) -> tuple[str, ...]:
    """The contenders of `--only`, in the order of the table; attncc is always one of them."""
    from attncc.bench.contenders import CONTENDERS, DEFAULT

    if only is None:
        return DEFAULT
    asked = {name.strip() for name in only.split(",")}
    unknown = asked - CONTENDERS.keys()
    if unknown:
        raise ValueError(f"--only {', '.join(sorted(unknown))}: use some of {', '.join(CONTENDERS)}")
    return tuple(name for name in CONTENDERS if name in asked | {"attncc"})
