"""The suite: bars, proportions, what is kept in the record, and the picture."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from attncc.bench import bars, engines, markdown, processes, rows, run, suite, timing
from attncc.bench.cases import Case
from attncc.bench.contenders import CONTENDERS, additive_mask
from attncc.bench.peak import Peak
from attncc.bench.timing import Timing
from attncc.cli import main

SMALL = Case(heads=2, kv_heads=2, q_len=40, kv_len=40, head_dim=16)
MACHINE = Peak(threads=1, fp32_gflops=100.0, bf16_gflops=200.0, read_gbs=10.0)


def command(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    """The exit status of `attncc` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["attncc", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def timed(case: Case, **medians: float) -> run.Result:
    entries = (run.Entry(name, error=0.0, timing=Timing(s, s, s, 1)) for name, s in medians.items())
    return run.Result(case, tuple(entries), 1.0, MACHINE)


def test_rows_are_what_they_say() -> None:
    """Names and labels are unique, peers exist, quick runs are shorter, and no case is without attncc."""
    assert len({row.name for row in rows.CPU}) == len(rows.CPU)
    for row in rows.CPU:
        trials = list(row.trials(False))
        labels = [trial.case.label for trial in trials]
        assert len(set(labels)) == len(labels)
        assert all(set(trial.names) <= CONTENDERS.keys() and "attncc" in trial.names for trial in trials)
        assert not {name for trial in trials for name in trial.variants} & CONTENDERS.keys()
        assert bool(trials) != (row.measure is not None)
        assert len(list(row.trials(True))) <= len(trials)


def test_bars() -> None:
    """Each kind of bar computes its figure from the times, and says whether it is met."""
    result = timed(SMALL, sdpa=3.0, attncc=1.0, plain=0.9)
    (met,), (missed,) = (bars.faster(times, "sdpa").findings([result]) for times in (3.0, 3.1))
    assert (met.value, met.met, missed.met) == (3.0, True, False)
    assert bars.within(1.2, "plain").findings([result])[0].met
    assert not bars.within(1.1, "plain").findings([result])[0].met
    assert bars.faster(2.0, "flex").findings([result]) == []
    assert bars.roofline(0.5, lambda result: False).findings([result]) == []
    decode = timed(Case(1, 1, 1, 1, 1000, 100, "float32"), attncc=1e-4)
    assert bars.roofline(0.85).findings([decode])[0].value == pytest.approx(0.8)
    other = replace(result.entries[0], name="D64", case=replace(SMALL, head_dim=64))
    wide = replace(result, entries=(*result.entries, other))
    assert bars.same_rate(0.7, "D64").findings([wide])[0].value == pytest.approx(3 / 4)


def test_markdown() -> None:
    """A line a bar and a line a case; the fastest other peer is named."""
    result = timed(SMALL, eager=4e-3, sdpa=3e-3, flex=5e-3, attncc=1e-3)
    row = rows.CPU[0]
    measured = suite.Measured(row, (result,), bars.faster(2.4, "sdpa").findings([result]))
    page = markdown.page([measured], {"cpu": "a CPU", "threads": 1, "versions": {"torch": "2"}})
    assert f"| {row.name} | against sdpa | ≥ 2.4 | 1 of 1 | 3 to 3 |" in page
    share = result.share(1e-3)[1]
    assert f"| {SMALL.label} | 3 ms | 4 ms eager | 1 ms | 3.00x | {share:.0%} peak |" in page


def test_visited_key_blocks() -> None:
    """Half of them and half the diagonal under a causal mask; all of them without a mask."""
    case = Case(q_len=512, kv_len=512, causal=True)
    queries, keys = bars.blocks(case)
    assert 0.5 < bars.visited(case) <= 0.5 + max(queries, keys) / 512
    assert bars.visited(replace(case, causal=False)) == 1.0
    assert bars.visited(replace(case, window=1)) <= (queries + 2 * keys) / 512


def test_slow_contenders_have_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit into the patience, one at least; by a clock on which nothing else takes time."""
    count, now = {"a": 0}, [0.0]
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow() -> None:
        count["a"] += 1
        now[0] += 0.02

    timings = timing.interleaved({"a": slow, "b": lambda: None}, turns=5, seconds=0.001, patience=0.05)
    assert (timings["a"].turns, timings["b"].turns) == (2, 5)
    assert count["a"] == 3


def test_a_wrong_peer_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor one that would take too long; attncc is timed all the same."""
    patched = {**CONTENDERS, "eager": lambda case: lambda q, k, v: CONTENDERS["sdpa"](case)(q, k, v) + 1}
    monkeypatch.setattr(run, "CONTENDERS", patched)
    options = {"turns": 1, "seconds": 0.0, "patience": 1.0}
    result = run.run(
        SMALL,
        MACHINE,
        names=("eager", "sdpa", "attncc"),
        variants={"causal": replace(SMALL, causal=True)},
        expected=lambda name: 2.0 * (name == "sdpa"),
        **options,
    )
    assert [entry.timing is not None for entry in result.entries] == [False, False, True, True]
    assert "wrong" in str(result) and "about 2.0 s a call" in str(result)
    again = run.Result.from_json(json.loads(json.dumps(result.to_json())))
    assert str(again) == str(result)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    "case",
    [
        SMALL,
        replace(SMALL, causal=True),
        replace(SMALL, causal=True, window=7),
        replace(SMALL, score="alibi"),
        replace(SMALL, heads=4, q_len=1),
    ],
    ids=lambda case: case.label,
)
def test_engines(engine: str, case: Case) -> None:
    """Where they are installed, they compute the case; twice, as operands stay bound."""
    pytest.importorskip(engine)
    inputs = case.inputs()
    attention = getattr(engines, engine)(case, additive_mask)
    for _ in range(2):
        torch.testing.assert_close(attention(*inputs), CONTENDERS["eager"](case)(*inputs), rtol=1e-4, atol=1e-5)


def test_engines_say_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, or without such an attention: a reason, and no failure of the run."""
    for engine, words in ((engines.openvino, "OpenVINO"), (engines.onnxruntime, "ONNX Runtime")):
        with pytest.raises(engines.Absent, match=f"{words}.*bilinear"):
            engine(replace(SMALL, bilinear=True), additive_mask)
    monkeypatch.setitem(sys.modules, "openvino", None)
    result = run.run(SMALL, MACHINE, names=("openvino", "attncc"), turns=1, seconds=0.0)
    assert result.passed and "pip install attncc[bench]" in str(result)


def test_the_suite_through_the_command_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row is shown with its bars, kept in the file, and not measured again when the file has it."""
    plain = replace(SMALL, dtype="bfloat16")
    trial = rows.Trial(replace(plain, causal=True), ("eager", "sdpa", "attncc"), {"plain": plain})
    row = rows.Row("tiny", "twice as fast", lambda quick: iter((trial,)), (bars.faster(0.0, "sdpa"),))
    broken = rows.Row("other", "never run", measure=lambda quick: (_ for _ in ()).throw(RuntimeError("wrong by 2")))
    monkeypatch.setattr(suite, "CPU", (row, broken))
    monkeypatch.setattr(suite, "measure", lambda progress: MACHINE)
    path = tmp_path / "table.json"
    options = ("bench", "--suite", "cpu", "--quick", "--save", str(path))
    assert command(monkeypatch, *options, "--only", "tiny,sdpa") == 0
    out = capsys.readouterr().out
    assert "tiny: twice as fast" in out and "1 of 1" in out and "eager" not in out
    data = json.loads(path.read_text())
    assert (data["suite"], data["format"], [r["name"] for r in data["rows"]]) == ("cpu", 1, ["tiny"])
    (finding,) = data["rows"][0]["findings"]
    assert finding["met"] and finding["value"] > 0 and data["machine"]["threads"] >= 1

    monkeypatch.setattr(suite, "measure", None)  # any measurement would raise
    page = tmp_path / "table.md"
    assert command(monkeypatch, *options, "--only", "tiny", "--json", "--markdown", str(page)) == 0
    assert f"| {trial.case.label} |" in page.read_text()
    assert json.loads(capsys.readouterr().out)["rows"] == data["rows"]
    monkeypatch.setattr(suite, "measure", lambda progress: MACHINE)
    assert command(monkeypatch, *options) == 1
    assert "wrong by 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--suite", "gpu"), "there is cpu"),
        (("--suite", "cpu", "--only", "nothing"), "no row nothing"),
        (("--save", "x.json"), "--suite"),
        (("--markdown", "x.md"), "--suite"),
    ],
)
def test_options_that_do_not_fit(
    options: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line that says what to use."""
    assert command(monkeypatch, "bench", *options) != 0
    assert message in capsys.readouterr().err


def test_the_picture(tmp_path: Path) -> None:
    """Drawn from results alone; without matplotlib the option says what to install."""
    pytest.importorskip("matplotlib")
    from attncc.bench.plot import roofline

    results = (timed(SMALL, sdpa=3e-3, attncc=1e-3), timed(replace(SMALL, dtype="bfloat16"), attncc=1e-4))
    found = suite.Measured(rows.CPU[0], results)
    roofline([found], {"cpu": "a machine", "threads": 1}, tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.alone
def test_memory_is_measured() -> None:
    """A call that makes all scores would show: 67 MB here."""
    case = Case(1, 1, 1, 4096, 4096, 16)
    finding = processes._memory_of(case)
    assert 0 <= finding.value < 40
