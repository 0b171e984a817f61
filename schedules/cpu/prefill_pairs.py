"""The prefill schedule over pairs of bfloat16: tiles interleaved along the reduced axis, products by intrinsics.

    for d: for n1, m1 (unrolled): for m2 < 16: r[n1, m1, m2] += k[.., d] * q[d, ..]

becomes, with q[d / 2, m, d % 2] and likewise p[n / 2, m, n % 2] and v[n / 2, e, n % 2],

    for d / 2: for n1, m1 (unrolled): r[n1, m1, :] = dot(r[n1, m1, :], q[d / 2, .., :], k[.., pair])

k is read in place, where its pairs lie already, or from a copy. v is interleaved once for a key block and a tile of
queries.
"""

from __future__ import annotations

from attncc._tvm import PrimFunc
from attncc.algorithm.key_step import EDGE
from attncc.algorithm.storage import storage_dtype
from attncc.schedules.cpu import bf16_intrinsics as intrinsics
from attncc.schedules.cpu.prefill_schedule import Copies, PrefillSchedule, Registers
from attncc.spec import AttentionSpec


class PairSchedule(PrefillSchedule):
    """`PrefillSchedule` with the products replaced; tiles and statistics are as there."""

    def __init__(
        self, function: PrimFunc, spec: AttentionSpec, registers: Registers, padded: bool, copy_keys: bool
    ) -> None:
        """`padded` says that the output tile has more columns than v; `copy_keys` that k is not read in place."""
        self.padded = padded
        self.held = storage_dtype(spec.dtype)  # dtype of tiles
        super().__init__(function, spec, registers, Copies(copy_keys, True))
        columns = int(self.sch.get(self.loops("load_v")[-1]).extent)
        self.pair_lanes = min(columns & -columns, 2 * registers.lanes)
        """Columns of v that are interleaved at a time: the widest power of two that divides the tile."""

    def load_query(self) -> None:
        """q in pairs along d."""
        sch = self.sch
        sch.transform_layout("load_q", ("write", 0), lambda d, m: (d // 2, m, d % 2))
        if self.spec.bilinear is not None:
            super().load_query()
            return
        d, m = self.loops("load_q")[-2:]
        d0, d1 = sch.split(d, [None, 2])
        m0, m1 = sch.split(m, [None, self.registers.lanes])
        sch.reorder(d0, m0, d1, m1)
        sch.tensorize(d1, intrinsics.pair(self.held, self.registers.lanes))

    def tiles(self) -> None:
        (loop,) = self.sch.get_loops("tile")
        self.sch.annotate(loop, "pragma_import_llvm", intrinsics.llvm_text(self.registers.lanes, self.pair_lanes))
        super().tiles()

    def load_values(self, suffix: str) -> None:
        """v in pairs along the keys. Where rows or columns are clamped, a plain copy comes first."""
        sch = self.sch
        load = sch.get_sblock("load_v" + suffix)
        pairs = sch.cache_write(load, 0, "global")
        sch.transform_layout(pairs, ("write", 0), lambda n, e: (n // 2, e, n % 2))
        copied = self.padded or suffix == EDGE
        if copied:
            self.row(self.loops("load_v" + suffix)[-1])
        else:
            sch.compute_inline(load)
        n, e = self.loops(pairs)[-2:]
        n0, n1 = sch.split(n, [None, 2])
        e0, e1 = sch.split(e, [None, self.pair_lanes])
        sch.reorder(n0, e0, n1, e1)
        sch.tensorize(n1, intrinsics.pair(self.held if copied else self.spec.dtype, self.pair_lanes))

    def score(self, suffix: str) -> None:
        sch, r = self.sch, self.registers
        qk, modify = sch.get_sblock("qk" + suffix), sch.get_sblock("modify" + suffix)
        sch.set_scope(qk, 0, "local")
        n, m, d = self.loops(qk)[-3:]
        n0, n1 = sch.split(n, [None, r.keys])
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        d0, d1 = sch.split(d, [None, 2])
        sch.reorder(n0, m0, d0, n1, m1, m2, d1)
        sch.reverse_compute_at(modify, m0, preserve_unit_loops=True)
        source = self.held if self.copies.keys else self.spec.dtype
        self.instruction_tile(qk, d0, [n1, m1, m2], intrinsics.dot(source, r.lanes))
        self.finish_tile(modify, self.light)
        self.maximum(suffix, n0, m0, self.light)
        self.ask_ahead(suffix, n0)

    def probabilities(self, suffix: str) -> None:
        """Two keys at a time: exp, the sum, and both rounded into pairs."""
        sch, r = self.sch, self.registers
        weigh, keep = (sch.get_sblock(name + suffix) for name in ("weigh", "keep_p"))
        total = sch.get_sblock("row_sum" + suffix) if self.softmax else None
        if suffix == "":
            sch.transform_layout(keep, ("write", 0), lambda n, m: (n // 2, m, n % 2))
        copy = sch.cache_write(total, 0, "local") if total else None
        sch.set_scope(weigh, 0, "local")
        n, m = self.loops(weigh)[-2:]
        m0, m1 = sch.split(m, [None, r.vectors * r.lanes])
        n0, n1 = sch.split(n, [None, 2])
        sch.reorder(m0, n0, n1, m1)
        sch.reverse_compute_at(keep, n0, preserve_unit_loops=True)
        if total:
            sch.reverse_compute_at(total, n0, preserve_unit_loops=True)
            sch.reverse_compute_at(copy, m0, preserve_unit_loops=True)
        n, m = self.loops(keep)[-2:]
        m1, m2 = sch.split(m, [None, r.lanes])
        sch.reorder(m1, n, m2)
        sch.unroll(m1)
        sch.tensorize(n, intrinsics.round_pairs(r.lanes, self.spec.dtype))
        if total:
            m, n = self.loops(total)[-2:]
            sch.reorder(n, m)
            self.finish_tile(total)
            start = sch.decompose_reduction(total, n0)
            for block in (copy, start):
                self.lanes(self.loops(block)[-1])
        self.finish_tile(weigh)

    def weighted_sum(self, suffix: str) -> None:
        sch, r = self.sch, self.registers
        pv, accumulate = sch.get_sblock("pv" + suffix), sch.get_sblock("accumulate" + suffix)
        sch.set_scope(pv, 0, "local")
        e, m, n = self.loops(pv)[-3:]
        e0, e1 = sch.split(e, [None, r.columns])
        m0, m1, m2 = sch.split(m, [None, r.vectors, r.lanes])
        n0, n1 = sch.split(n, [None, 2])
        sch.reorder(m0, e0, n0, e1, m1, m2, n1)
        sch.reverse_compute_at(accumulate, e0, preserve_unit_loops=True)
        self.instruction_tile(pv, n0, [e1, m1, m2], intrinsics.dot(self.held, r.lanes))
        self.finish_tile(accumulate)
