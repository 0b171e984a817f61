"""Before keys are read: which blocks of them a tile has to visit, as far as only the data can tell (`knowledge`).

A chunk of edge blocks at a time, facts are collected, and two lists are made of what follows from them: the full steps,
where no mask is needed, and the edge steps. Blocks in neither are not visited. Facts of rows and of keys cost little;
facts of pairs are looked for row after row, along the chunk, and no further in a block that is decided.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attncc._tvm import Buffer, T, tirx
from attncc.algorithm import numeric
from attncc.algorithm.blocks import accesses, let, repeat, store, tile
from attncc.algorithm.knowledge import FALSE_SEEN, TRUE_SEEN, Fact, Knowledge
from attncc.algorithm.lower_expr import Env, element, lower
from attncc.algorithm.pair_loads import strides
from attncc.algorithm.prefill_tile import Tile
from attncc.algorithm.seen import llvm_text as seen_text
from attncc.algorithm.seen import look, test_of

CHUNK = 64
"""Edge blocks surveyed together: enough for long runs, few enough for their part of a mask to stay in L2."""

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Survey:
    """The buffers of a tile's survey; those that its facts do not need are None."""

    known: Knowledge
    row_facts: Buffer | None
    """int64 [facts]: those over rows"""
    key_facts: Buffer | None
    """int64 [facts, CHUNK]: those that differ by block"""
    full: Buffer
    """int64 [CHUNK]: the first edge block of each full step"""
    edges: Buffer
    """int64 [CHUNK]: the edge steps"""
    counts: Buffer
    """int64 [4]: full steps, edge steps, full blocks since the last step, and 1 once something lossy was left out"""

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        facts = [buffer for buffer in (self.row_facts, self.key_facts) if buffer is not None]
        return (*facts, self.full, self.edges, self.counts)


def llvm_text(known: Knowledge) -> str:
    """The LLVM IR that a kernel with such a survey imports; empty where it needs none."""
    return seen_text(test for fact in known.facts if fact.over == "pairs" and (test := test_of(fact)) is not None)


def open_survey(t: Tile, known: Knowledge) -> Survey:
    """The buffers, and the facts of the tile's rows."""
    number = len(known.facts)
    by_row = any(fact.over == "rows" for fact in known.facts)
    by_key = any(fact.over != "rows" for fact in known.facts)
    survey = Survey(
        known,
        row_facts=tile("row_facts", (number,), "int64") if by_row else None,
        key_facts=tile("key_facts", (number, CHUNK), "int64") if by_key else None,
        full=tile("full_list", (CHUNK,), "int64"),
        edges=tile("edge_list", (CHUNK,), "int64"),
        counts=tile("counts", (4,), "int64"),
    )
    with repeat("row_survey", 1):
        accesses(t.signature.inputs, survey.buffers)
        store(survey.counts, [3], T.int64(0))
        if survey.row_facts is not None:
            _facts_of_rows(t, known, survey.row_facts)
    return survey


def survey_chunk(t: Tile, survey: Survey, first: Any, count: Any, everything: Any) -> None:
    """Make the lists for `count` edge blocks from number `first` on; all blocks are visited under `everything`."""
    known = survey.known
    with repeat("key_survey", 1):
        accesses((*t.signature.inputs, *survey.buffers), survey.buffers)
        if survey.key_facts is not None:
            _facts_of_keys(t, known, survey.key_facts, first, count)
            _facts_of_pairs(t, known, survey.key_facts, first, count)
        _lists(t, survey, first, count, everything)


def _facts(known: Knowledge, over: str) -> list[tuple[int, Fact]]:
    return [(number, fact) for number, fact in enumerate(known.facts) if fact.over == over]


def _rows(t: Tile) -> Any:
    """Rows of the tile that exist."""
    return T.min(t.signature.sizes["Sq"] - t.first_row, t.tiling.queries)


def _keys(t: Tile, block: Any) -> Any:
    """Keys of an edge block that exist."""
    return T.min(t.signature.sizes["Skv"] - block * t.tiling.edge, t.tiling.edge)


def _facts_of_rows(t: Tile, known: Knowledge, facts: Buffer) -> None:
    for number, fact in _facts(known, "rows"):
        store(facts, [number], _nothing(fact))
    with T.serial(_rows(t)) as row:
        for number, fact in _facts(known, "rows"):
            store(facts, [number], _observed(t, fact, {"i": t.first_row + row}, facts[number]))


def _facts_of_keys(t: Tile, known: Knowledge, facts: Buffer, first: Any, count: Any) -> None:
    """Those over keys; those over pairs are started."""
    with T.serial(count) as n:
        for over in ("keys", "pairs"):
            for number, fact in _facts(known, over):
                store(facts, [number, n], _nothing(fact))
        if _facts(known, "keys"):
            with T.serial(_keys(t, first + n)) as c:
                for number, fact in _facts(known, "keys"):
                    index = {"j": (first + n) * t.tiling.edge + c}
                    store(facts, [number, n], _observed(t, fact, index, facts[number, n]))


def _facts_of_pairs(t: Tile, known: Knowledge, facts: Buffer, first: Any, count: Any) -> None:
    size, key = t.tiling.edge, let("chunk_key", first * t.tiling.edge)
    for number, fact in _facts(known, "pairs"):
        test, enough = test_of(fact), T.int64(fact.enough)
        with T.serial(_rows(t)) as row:
            index = {"i": t.first_row + row, "j": key}
            if test is not None:
                _, load = test
                stride, keys = strides(load, t.signature.extras[load.tensor])[1], t.signature.sizes["Skv"] - key
                found = element(load, _env(t, index))
                look(test, found, stride, T.min(keys, count * size), size, facts[number, 0], fact.enough)
                continue
            with T.serial(count) as n:
                undecided = tirx.NE(tirx.bitwise_and(facts[number, n], enough), enough)
                with T.If(undecided), T.Then(), T.serial(_keys(t, first + n)) as c:
                    index["j"] = (first + n) * size + c
                    store(facts, [number, n], _observed(t, fact, index, facts[number, n]))


def _lists(t: Tile, survey: Survey, first: Any, count: Any, everything: Any) -> None:
    """Runs of full blocks become full steps; a run that is too short for one stays among the edges."""
    counts, step = survey.counts, t.tiling.keys // t.tiling.edge
    for number in range(3):
        store(counts, [number], T.int64(0))
    with T.serial(count) as n:
        block = let("block", first + n)
        end = let("block_end", (block + 1) * t.tiling.edge)
        env = _conclusion_env(t, survey, n, block)
        visible = let("visible", lower(survey.known.visible, env))
        masked = tirx.Or(lower(survey.known.masked, env), end > t.signature.sizes["Skv"])
        visit = let("visit", visible if everything is None else tirx.Or(visible, everything))
        lost = tirx.And(tirx.Not(visit), lower(survey.known.lossy, env))
        store(counts, [3], T.Select(lost, T.int64(1), counts[3]))
        run = let("run", T.Select(tirx.And(visible, tirx.Not(masked)), counts[2] + 1, T.int64(0)))
        whole = let("whole", tirx.EQ(run, T.int64(step)))
        full, edges = let("full_count", counts[0]), let("edge_count", counts[1])
        store(survey.full, [full], block - (step - 1))
        store(survey.edges, [edges], block)
        store(counts, [0], full + T.Select(whole, T.int64(1), T.int64(0)))
        store(counts, [1], T.Select(whole, edges - (step - 1), edges + T.Select(visit, T.int64(1), T.int64(0))))
        store(counts, [2], T.Select(whole, T.int64(0), run))


def _conclusion_env(t: Tile, survey: Survey, n: Any, block: Any) -> Env:
    index: dict[str, Any] = {}
    for number, fact in enumerate(survey.known.facts):
        if fact.over == "rows" and survey.row_facts is not None:
            index[fact.name] = survey.row_facts[number]
        elif survey.key_facts is not None:
            index[fact.name] = survey.key_facts[number, n]
    index["first_key"] = block * t.tiling.edge
    index["last_key"] = T.min((block + 1) * t.tiling.edge, t.signature.sizes["Skv"]) - 1
    return Env(t.dtype, index)


def _nothing(fact: Fact) -> Any:
    """A fact before anything was looked at."""
    return T.int64({"seen": 0, "least": _INT64_MAX, "most": -_INT64_MAX}[fact.kind])


def _observed(t: Tile, fact: Fact, index: dict[str, Any], before: Any) -> Any:
    """The fact with one more position, or pair of them."""
    value = lower(fact.value, _env(t, index))
    if fact.kind == "seen":
        return tirx.bitwise_or(before, T.Select(value, T.int64(TRUE_SEEN), T.int64(FALSE_SEEN)))
    value = numeric.cast("int64", value)
    return T.min(before, value) if fact.kind == "least" else T.max(before, value)


def _env(t: Tile, index: dict[str, Any]) -> Env:
    places = {"b": t.batch, "h": t.head, **index}
    return Env(t.dtype, places, t.signature.sizes, t.scalars, t.signature.extras)
