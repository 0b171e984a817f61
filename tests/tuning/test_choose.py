"""Which record a call gets: the nearest that has beaten what would run here by enough, else the default."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tuning_records import FAMILY, PROBLEM, SPEC, another, decisions, default, failed, record

from attncc import reference, schedules
from attncc.runtime import build, dispatch, stats
from attncc.schedules import Problem
from attncc.target import detect
from attncc.tuning import sources
from attncc.tuning.choose import Choice, choice
from attncc.tuning.database import Database
from attncc.tuning.record import Record

FIELDS = sorted(json.loads(record().to_json()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(default())), inner, max_size=6),
    max_leaves=8,
)
OTHER = decisions(edge_block=16)
LONGER = Problem(PROBLEM.batch, PROBLEM.heads, 600, 280, 1)
"""One doubling away."""


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """The user's database, empty; nothing is shipped, nothing was named."""
    monkeypatch.setenv("ATTNCC_DATABASE", str(tmp_path / "tuned.jsonl"))
    monkeypatch.setattr(sources, "SHIPPED", tmp_path / "shipped")
    monkeypatch.setattr(sources, "_named", [])
    monkeypatch.setattr(sources, "_warned", set())
    sources.shipped.cache_clear()
    sources._sources.cache_clear()
    yield Database(tmp_path / "tuned.jsonl")
    sources.shipped.cache_clear()
    sources._sources.cache_clear()


def chosen(problem: Problem = PROBLEM) -> Choice:
    return choice(SPEC, FAMILY, detect(), problem)


def test_without_records_decisions_are_analytic(db: Database) -> None:
    assert chosen() == Choice(FAMILY, default(), "analytic default")


def test_the_best_winner_of_the_bucket_is_taken(db: Database) -> None:
    db.append(record(0.1), record(0.3, OTHER), record(None, decisions(key_rows=another("key_rows"))))
    found = chosen()
    assert (found.family, found.decisions) == (FAMILY, OTHER)
    assert found.source.startswith("tuned ") and "30% faster than the default" in found.source
    assert chosen(replace(PROBLEM, q_len=257)).decisions == OTHER, "the same bucket"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (record(0.01, spread=0.0), "nothing beat it for h8 q512 k512 t1"),
        (record(0.2, spread=0.3), "nothing beat it"),
        (record(-0.5), "nothing beat it"),
        (record(None), "analytic default"),
        (failed(), "analytic default"),
        (record(given=decisions(query_block=10**9)), "query_block=1000000000 is not one of"),
        (record(default_decisions={**default(), "key_block": 1}), "compared with another default"),
        (record(default_family="cpu.short"), "compared with another default"),
        (record(family="cpu.magic"), "no kernel family 'cpu.magic'"),
        (replace(record(), versions=replace(record().versions, attncc="0.0.1")), "made with attncc 0.0.1"),
        (replace(record(), versions=replace(record().versions, tvm="0.1")), "apache-tvm 0.1"),
        (replace(record(0.06), versions=replace(record().versions, generators="edited")), "won too little"),
        (record(target=replace(detect(), features=detect().features | {"amx-fp99"})), "amx-fp99"),
        (record(spec=replace(SPEC, empty_row="nan").json), "analytic default"),
    ],
)
def test_what_has_not_certainly_won_here_is_not_used(db: Database, given: Record, says: str) -> None:
    db.append(given)
    assert (chosen().family, chosen().decisions, chosen().record) == (FAMILY, default(), None)
    assert says in chosen().source


def test_edited_sources_ask_for_a_clear_win(db: Database) -> None:
    db.append(replace(record(0.15), versions=replace(record().versions, generators="edited")))
    assert chosen().decisions == decisions()


def test_a_record_measured_again_and_beaten_is_dropped(db: Database) -> None:
    db.append(record(0.3, OTHER), record(0.1))
    assert chosen().decisions == OTHER
    db.append(record(-0.02, OTHER))
    assert chosen().decisions == decisions()
    db.append(failed("wrong result"))
    assert chosen().decisions == default()


def test_a_near_bucket_lends_its_record_if_it_won_clearly(db: Database) -> None:
    db.append(record(0.05))
    assert chosen(LONGER).record is None and "too little to be carried over" in chosen(LONGER).source
    db.append(record(0.11, OTHER))
    assert chosen(LONGER).decisions == OTHER
    assert chosen(LONGER).source.startswith("nearest bucket: tuned ")
    assert chosen(replace(LONGER, q_len=2000)).record is None, "two doublings ask for more"
    assert chosen(replace(LONGER, q_len=4000)).source == "analytic default", "too far"


def test_the_nearest_bucket_decides_also_that_the_default_is_best(db: Database) -> None:
    db.append(record(0.5, problem=replace(LONGER, q_len=1200)), record(-0.1))
    assert chosen(LONGER).record is None
    assert "nothing beat it for h8 q512" in chosen(LONGER).source


def test_another_machine_lends_its_record_if_it_won_clearly(db: Database) -> None:
    weaker = replace(detect(), mcpu="x86-64", features=frozenset(), l2=detect().l2 // 2)
    db.append(record(0.1, target=weaker))
    assert chosen().record is None
    db.append(record(0.2, target=weaker))
    assert chosen().source.startswith("nearest machine, x86-64: tuned ")
    db.append(record(-0.3))
    assert chosen().record is None, "what was measured here counts more"


def test_of_other_machines_the_nearest_is_asked(db: Database) -> None:
    """The same CPU with half the cache counts more than another CPU, whose win is larger."""
    other = replace(detect(), mcpu="x86-64", features=frozenset())
    alike = replace(detect(), l1=detect().l1 // 2)
    db.append(record(0.9, OTHER, target=other), record(0.2, target=alike))
    assert chosen().decisions == decisions()
    assert f"nearest machine, {detect().mcpu}:" in chosen().source


def test_the_users_records_come_before_the_shipped_ones(db: Database, tmp_path: Path) -> None:
    shipped = Database(tmp_path / "shipped" / "cpu.jsonl")
    shipped.append(record(0.4, OTHER))
    assert chosen().decisions == OTHER and "shipped with attncc" in chosen().source
    db.append(record(0.1))
    assert chosen().decisions == decisions()
    named = Database(tmp_path / "named.jsonl")
    named.append(record(0.05, decisions(key_rows=another("key_rows"))))
    assert sources.use(named.path) and not sources.use(named.path)
    assert chosen().decisions == decisions(key_rows=another("key_rows"))


def test_everything_can_be_switched_off(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    db.append(record())
    monkeypatch.setenv("ATTNCC_DATABASE", "none")
    assert chosen().source == "analytic default"


def test_a_record_may_name_another_family_that_suits(db: Database) -> None:
    """A forged one cannot put a call into a kernel that has no room for it."""
    short, narrow = (next(f for f in schedules.CPU if f.name == name) for name in ("cpu.short", "cpu.fallback"))
    few = Problem(2, 3, 100, 100, 1)
    db.append(record(0.5, short.decisions(SPEC, detect()), family=short.name))
    assert chosen().record is None, "300 keys are too many for it"
    db.append(record(0.5, short.decisions(SPEC, detect()), family=short.name, problem=few))
    assert chosen(few).family is short
    db.append(record(0.6, narrow.decisions(SPEC, detect()), family=narrow.name, problem=few))
    assert chosen(few).family is narrow


def test_a_file_is_read_once_and_again_when_it_changes(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    content = Database.content
    monkeypatch.setattr(Database, "content", lambda self: reads.append(1) or content(self))
    db.append(record())
    for length in (257, 300, 512):
        assert chosen(replace(PROBLEM, q_len=length)).record is not None
    assert chosen(LONGER).record is not None
    assert len(reads) == 1
    db.append(record(0.5, OTHER))
    assert chosen().decisions == OTHER
    assert len(reads) == 2


def test_a_file_that_cannot_be_used_costs_one_warning(db: Database) -> None:
    db.append(record())
    db.path.chmod(0o666)
    with pytest.warns(RuntimeWarning, match="tuned records are not used: .*no other may write it"):
        assert chosen().record is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(LONGER).record is None


def run(problem: Problem = PROBLEM) -> None:
    """A call of that size through the runtime, against the oracle."""
    batch, heads = problem.batch, problem.heads
    q = torch.randn(batch, heads, problem.q_len, 16)
    k, v = torch.randn(batch, heads, problem.kv_len, 16), torch.randn(batch, heads, problem.kv_len, 8)
    out = dispatch.attention(q, k, v, [], [0.3], [], SPEC.json, "bhsd")
    torch.testing.assert_close(out.double(), reference.attention(SPEC, q, k, v, [], [0.3]), rtol=1e-5, atol=1e-5)


@pytest.fixture
def runtime(db: Database) -> Iterator[Callable[[], list[str]]]:
    """Nothing planned nor built, one thread; gives what ran since the last question: where its decisions came from."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    dispatch.forget_plans()
    build.forget()
    stats.stats(reset=True)
    yield lambda: [kernel.decisions for kernel in stats.stats(reset=True).kernels if kernel.calls]
    torch.set_num_threads(threads)
    dispatch.forget_plans()


def test_calls_run_the_tuned_kernel_and_the_statistics_say_so(db: Database, runtime: Callable[[], list[str]]) -> None:
    run()
    assert runtime() == ["analytic default"]
    db.append(record(0.3))
    run()
    assert runtime() == ["analytic default"], "a plan is made once"
    run(replace(PROBLEM, q_len=290))
    (source,) = runtime()
    assert source.startswith("tuned ") and "30% faster" in source
    assert f"({source})" not in str(stats.stats())
    run(replace(PROBLEM, q_len=290))
    assert "30% faster" in str(stats.stats())


def test_forged_decisions_cost_nothing_but_the_default(db: Database, runtime: Callable[[], list[str]]) -> None:
    """Lines that a user could be handed: none of them is an error, none gives another result."""
    line = record(5.0).to_json()
    block = f'"query_block":{decisions()["query_block"]}'
    forged = ["1000000000", "-1", "0", '"64"', "true", "64.0", "1e400", "[64]", '{"__class__":"os.system"}']
    db.path.write_text("\n".join(line.replace(block, f'"query_block":{value}') for value in forged) + "\n")
    db.path.chmod(0o600)
    assert line.count(block) == 1
    run()
    assert runtime() == ["analytic default"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(FIELDS), JSON) | st.binary(max_size=40), min_size=1, max_size=4))
def test_whatever_is_in_the_file_a_call_gets_a_point_of_the_space(db: Database, lines: list[Any]) -> None:
    """Records with a field replaced, and bytes of no meaning: no error, and no decisions but known ones."""
    whole = json.loads(record(5.0).to_json())
    texts = [line if isinstance(line, bytes) else json.dumps({**whole, line[0]: line[1]}).encode() for line in lines]
    db.path.write_bytes(b"\n".join(texts))
    db.path.chmod(0o600)
    space = FAMILY.space(SPEC, detect())
    found = chosen()
    assert found.family is FAMILY and found.decisions.keys() == space.keys()
    assert all(type(value) is int and value in space[name] for name, value in found.decisions.items())


def test_a_tuned_kernel_that_cannot_be_built_is_replaced_by_the_default(
    db: Database, runtime: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    db.append(record(0.3))
    real = build.kernel

    def broken(spec: object, target: object, family: object, given: object, source: str) -> build.Kernel:
        if source != stats.DEFAULT:
            raise RuntimeError("LLVM is out of sorts")
        return real(spec, target, family, given, source)  # type: ignore[arg-type]

    monkeypatch.setattr(build, "kernel", broken)
    with pytest.warns(RuntimeWarning, match=r"cpu\.prefill\.fp32 \(tuned .*out of sorts"):
        run()
    run(replace(PROBLEM, q_len=290))
    assert runtime() == ["analytic default"]


def test_a_database_can_be_named_when_a_model_is_compiled(db: Database, tmp_path: Path) -> None:
    import attncc

    named = Database(tmp_path / "named.jsonl")
    attend = attncc.compile(lambda q, k, v: (q @ k.mT).softmax(-1) @ v, database=named.path)
    q, k, v = torch.randn(3, 1, 2, 20, 16).unbind()
    torch.testing.assert_close(attend(q, k, v), (q @ k.mT).softmax(-1) @ v)
    assert sources.sources()[0].path == named.path
    with pytest.raises(ValueError, match="database=7 is not a path"):
        attncc.compile(attend, database=7)


def test_an_artifact_gets_the_tuned_kernel_beside_the_default(db: Database) -> None:
    """Whether sizes are fixed or open; but not where they are fixed to others."""
    from attncc.export.kernels import Call, wanted

    sizes = (PROBLEM.batch, PROBLEM.heads, PROBLEM.q_len, PROBLEM.kv_len)
    db.append(record(0.3, problem=dispatch.problem_of(SPEC, *sizes, threads=detect().cores)))
    for length, tuned in ((sizes[3], [decisions()]), (None, [decisions()]), (16 * sizes[3], [])):
        found = wanted([Call(SPEC, *sizes[:3], length)], detect())
        assert [kernel.decisions for kernel in found if kernel.family == FAMILY and kernel.places] == tuned
        assert [kernel.decisions for kernel in found if kernel.family == FAMILY and not kernel.places] == [default()]


def test_explain_says_where_decisions_come_from(db: Database) -> None:
    import attncc

    def model(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return (q @ k.mT * 0.25).softmax(-1) @ v

    q, k, v = torch.randn(3, 2, 4, 300, 16).unbind()
    site = attncc.explain(model, q, k, v).sites[0]
    assert site.decisions == "analytic default"
    spec = site.spec
    assert spec is not None
    problem = dispatch.problem_of(spec, 2, 4, 300, 300)
    family = schedules.select(spec, problem, detect())
    own = family.decisions(spec, detect())
    space = family.space(spec, detect())
    name, value = next((n, x) for n, values in space.items() for x in values if x != own[n])
    known = {"spec": spec.json, "family": family.name, "default_family": family.name, "default_decisions": own}
    db.append(record(0.25, {**own, name: value}, problem=problem, **known))
    report = attncc.explain(model, q, k, v)
    assert report.sites[0].decisions.startswith("tuned ") and "25% faster" in report.sites[0].decisions
    assert "25% faster" in " ".join(str(report).split())
    assert "1 used on this machine" in " ".join(str(attncc.info()).split())
