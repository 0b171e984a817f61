"""The schedule that the prefill families share: queries in vector lanes, products in register tiles.

    for n: for m: for d: s[n, m] += k[n, d] * q[d, m]

becomes, with R keys by V vectors of L lanes held in registers,

    for n0: for m0:
        r[R, V, L] = 0
        for d: for n1 < R, m1 < V (unrolled): for m2 < L (vectorised):
            r[n1, m1, m2] += k[n0 R + n1, d] * q[d, (m0 V + m1) L + m2]
        x[..] = score_mod(r)

and the weighted sum the same with keys as the reduction. k and v enter as scalars, broadcast from where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attncc import expr as ex
from attncc._tvm import IRModule, PrimFunc, Schedule
from attncc.algorithm.distances import distance_terms, from_diagonals
from attncc.algorithm.key_step import EDGE, WEIGHTS
from attncc.algorithm.pair_loads import is_pair_load
from attncc.algorithm.signature import NAME
from attncc.schedules.cpu import model
from attncc.schedules.cpu.loops import Loops
from attncc.spec import AttentionSpec

MOST_LIGHT_NODES = 24
HEAVY = frozenset(
    ("pow", "exp", "exp2", "log", "log2", "log1p", "tanh", "sigmoid", "erf", "sin", "cos", "floordiv", "mod")
)


@dataclass(frozen=True)
class Registers:
    """Register tiles: `vectors` of `lanes` queries, times `keys` scores or `columns` of the output."""

    lanes: int
    vectors: int
    keys: int
    columns: int


@dataclass(frozen=True)
class Copies:
    """Which of k and v are copied into a tile, a block at a time, instead of being read where they lie.

    They must be where they have another dtype than the tiles. Else a copy costs its time, and pays where rows lie so
    far apart that those of a block share a few sets of a cache, or take more pages than are remembered.
    """

    keys: bool
    values: bool


class PrefillSchedule(Loops):
    """Schedules a function of `attncc.algorithm.prefill`, block by block, with primitives alone."""

    def __init__(self, function: PrimFunc, spec: AttentionSpec, registers: Registers, copies: Copies) -> None:
        """`function` is the kernel of `spec`."""
        super().__init__(Schedule(IRModule({NAME: function})), registers.lanes)
        self.light = is_light(spec)
        self.softmax = spec.normalizer == "softmax"
        self.spec = spec
        self.sch.work_on(NAME)
        self.registers = registers
        self.copies = copies

    def module(self) -> IRModule:
        """The scheduled function, ready to compile."""
        self.query()
        for suffix in ("", EDGE):
            self.diagonals(suffix)
            self.load_keys(suffix)
            self.score(suffix)
            self.probabilities(suffix)
            self.load_values(suffix)
            self.weighted_sum(suffix)
            for name in ("base", "decay", "keep_max", "keep_sum") if self.softmax else ():
                self.lanes(self.loops(name + suffix)[-1])
            self.lanes(self.loops("keep_output" + suffix)[-1])
        for name in ("start_max", "start_sum", "invert") if self.softmax else ():
            self.lanes(self.loops(name)[-1])
        self.lanes(self.loops("start_output")[-1])
        self.lanes(self.loops("round")[-1])
        if "weights" in self.spec.outputs:
            self.diagonals(WEIGHTS)
            self.load_keys(WEIGHTS)
            self.score(WEIGHTS)
            for name in ("last_base",) * self.softmax + ("normalise", "keep_weights"):
                self.lanes(self.loops(name)[-1])
        self.tiles()
        return self.sch.mod

    def tiles(self) -> None:
        """Tiles in parallel. Last: TVM 0.27 takes what stands in a changed loop for its own, and changes the source."""
        (loop,) = self.sch.get_loops("tile")
        self.sch.parallel(loop)

    def query(self) -> None:
        """The query tile, and the bilinear form in register tiles where there is one."""
        sch, r = self.sch, self.registers
        self.load_query()
        if self.spec.bilinear is None:
            return
        project = sch.get_sblock("project")
        copy = sch.cache_write(project, 0, "local")
        d, m, c = self.loops(project)[-3:]
        rows = max(n for n in range(1, r.columns + 1) if int(sch.get(d).extent) % n == 0)
        d0, d1 = sch.split(d, [None, rows])
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        sch.reorder(d0, m0, c, d1, m1, m2)
        sch.reverse_compute_at(copy, m0, preserve_unit_loops=True)
        self.register_tile(project, c, [d1, m1, m2])
        self.finish_tile(copy)

    def load_query(self) -> None:
        self.lanes(self.loops("load_q")[-1])

    def diagonals(self, suffix: str) -> None:
        """Terms that differ by distance, a vector of diagonals at a time."""
        for number in range(len(distance_terms(self.spec.score_mod))):
            _, lanes = self.sch.split(self.loops(f"diagonal{number}{suffix}")[-1], [None, self.registers.lanes])
            self.sch.vectorize(lanes)

    def load_keys(self, suffix: str) -> None:
        """k is read in place, or its tile is made row by row."""
        if self.copies.keys:
            self.row(self.loops("load_k" + suffix)[-1])
        else:
            self.sch.compute_inline("load_k" + suffix)

    def load_values(self, suffix: str) -> None:
        """The same for v; at the edges its tile is always made: it ends in 0."""
        if self.copies.values or suffix == EDGE:
            self.row(self.loops("load_v" + suffix)[-1])
        else:
            self.sch.compute_inline("load_v" + suffix)

    def score(self, suffix: str) -> None:
        """The product into registers, and score_mod on it there."""
        sch, r = self.sch, self.registers
        qk, modify = sch.get_sblock("qk" + suffix), sch.get_sblock("modify" + suffix)
        part = self.partial_sums(qk)
        sch.set_scope(qk, 0, "local")
        n, m, d = self.loops(qk)[-3:]
        n0, n1 = sch.split(n, [None, r.keys])
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        sch.reorder(n0, m0, d, n1, m1, m2)
        sch.reverse_compute_at(modify, m0, preserve_unit_loops=True)
        if part is not None:
            sch.set_scope(part, 0, "local")
            sch.compute_at(part, d, preserve_unit_loops=True)
            n_part, m_part, d_part = self.loops(part)[-3:]
            m1_part, m2_part = sch.split(m_part, [None, r.lanes])
            sch.reorder(d_part, n_part, m1_part, m2_part)
            self.register_tile(part, d_part, [n_part, m1_part, m2_part])
        self.register_tile(qk, d, [n1, m1, m2])
        self.finish_tile(modify, self.light)
        self.maximum(suffix, n0, m0, self.light)
        self.ask_ahead(suffix, n0)

    def partial_sums(self, qk: Any) -> Any:
        """A block that sums a part of d at a time, for large heads.

        None for small ones, and where d has no fitting divisor.
        """
        d = self.loops(qk)[-1]
        extent = int(self.sch.get(d).extent)
        parts = [n for n in range(model.LONGEST_SUM // 2, model.LONGEST_SUM + 1) if extent % n == 0]
        if not model.divided(extent) or not parts:
            return None
        d0, _ = self.sch.split(d, [None, parts[-1]])
        return self.sch.rfactor(d0, 0)

    def maximum(self, suffix: str, keys: Any, queries: Any, unroll: bool) -> None:
        """The maximum over the register tile inside the loops `keys` and `queries`, while it is at hand."""
        if not self.softmax or suffix == WEIGHTS:
            return
        sch, block = self.sch, self.sch.get_sblock("row_max" + suffix)
        sch.reverse_compute_at(block, queries, preserve_unit_loops=True)
        m, n = self.loops(block)[-2:]
        m1, m2 = sch.split(m, [None, self.registers.lanes])
        sch.reorder(n, m1, m2)
        sch.vectorize(m2)  # before the split: see `register_tile`
        sch.unroll(m1)
        if unroll:
            sch.unroll(n)
        start = sch.decompose_reduction(block, keys)
        self.lanes(self.loops(start)[-1])

    def ask_ahead(self, suffix: str, keys: Any) -> None:
        """Full steps ask memory for a few keys and values after each register tile's rows."""
        if suffix == "":
            self.sch.reverse_compute_at("ask_ahead", keys, preserve_unit_loops=True)

    def probabilities(self, suffix: str) -> None:
        """exp, its rounding and its sum in one loop over keys, a register tile wide."""
        sch, r = self.sch, self.registers
        weigh, keep = (sch.get_sblock(name + suffix) for name in ("weigh", "keep_p"))
        total = sch.get_sblock("row_sum" + suffix) if self.softmax else None
        copy = sch.cache_write(total, 0, "local") if total else None
        sch.set_scope(weigh, 0, "local")
        n, m = self.loops(weigh)[-2:]
        m0, m1 = sch.split(m, [None, r.vectors * r.lanes])
        sch.reorder(m0, n, m1)
        sch.reverse_compute_at(keep, n, preserve_unit_loops=True)
        if total:
            sch.reverse_compute_at(total, n, preserve_unit_loops=True)
            sch.reverse_compute_at(copy, m0, preserve_unit_loops=True)
            self.lanes(self.loops(total)[-2])
            start = sch.decompose_reduction(total, n)
            for block in (copy, start):
                self.lanes(self.loops(block)[-1])
        for block in (weigh, keep):
            self.lanes(self.loops(block)[-1])

    def weighted_sum(self, suffix: str) -> None:
        """The product into registers, and from there onto the decayed sum so far."""
        sch, r = self.sch, self.registers
        pv, accumulate = sch.get_sblock("pv" + suffix), sch.get_sblock("accumulate" + suffix)
        sch.set_scope(pv, 0, "local")
        e, m, n = self.loops(pv)[-3:]
        e0, e1 = sch.split(e, [None, r.columns])
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        sch.reorder(m0, e0, n, e1, m1, m2)
        sch.reverse_compute_at(accumulate, e0, preserve_unit_loops=True)
        self.register_tile(pv, n, [e1, m1, m2])
        self.finish_tile(accumulate)

    def finish_tile(self, block: Any, unroll: bool = True) -> None:
        """Unroll what takes a register tile of two loops out of registers; rolled, it goes through memory."""
        rows, queries = self.loops(block)[-2:]
        self.lanes(queries)
        if unroll:
            self.sch.unroll(rows)

    def lanes(self, loop: Any) -> None:
        """Run `loop` over queries in vectors, unrolled where it is a register tile."""
        outer, inner = self.sch.split(loop, [None, self.registers.lanes])
        self.sch.vectorize(inner)
        self.sch.unroll(outer)


def is_light(spec: AttentionSpec) -> bool:
    """Whether score_mod and mask take few instructions: unrolled over a register tile, others take long to compile."""
    trees = [from_diagonals(spec.score_mod)] + ([spec.mask] if spec.mask is not None else [])
    nodes = [node for tree in trees for node in tree.walk()]
    reads = [node for node in nodes if isinstance(node, ex.Load) and not is_pair_load(node)]
    heavy = [node for node in nodes if isinstance(node, ex.Op) and node.name in HEAVY]
    return not reads and not heavy and len(nodes) <= MOST_LIGHT_NODES
