"""The prefill schedule on AMX: whole tiles of scores and outputs by intrinsics, the rest as over pairs of two bytes.

    for n: for m: for d: r[n, m] += k[n, d] * q[d, m]

becomes, with q[d / 2, m, d % 2], and for tiles of 32 keys by 32 queries,

    for n0: for m0: r = product(k[n0 .., :], q[:, m0 .., :]); x[..] = score_mod(r)

and the weighted sum the same, with v turned, v[e, n], in the place of k. Sums leave the tile registers through memory.
"""

from __future__ import annotations

from typing import Any

from attncc.schedules.cpu import amx_intrinsics as amx
from attncc.schedules.cpu import bf16_intrinsics as intrinsics
from attncc.schedules.cpu import mmla_intrinsics as mmla
from attncc.schedules.cpu.prefill_pairs import PairSchedule


class TileSchedule(PairSchedule):
    """`PairSchedule` with both products on tile registers."""

    around = (amx.BEGIN, amx.END)

    def tiles(self) -> None:
        (loop,) = self.sch.get_loops("tile")
        pairs = intrinsics.half_text if self.spec.dtype == "float16" else intrinsics.llvm_text
        text = pairs(self.registers.lanes, self.pair_lanes) + self.products()
        self.sch.annotate(loop, "pragma_import_llvm", text)
        self.sch.parallel(loop)

    def products(self) -> str:
        """The functions that the intrinsics call, in LLVM IR."""
        return amx.llvm_text(self.spec.dtype)

    def load_keys(self, suffix: str) -> None:
        """k is read in place, or copied; at edges, where rows are clamped, always copied."""
        if suffix:
            self.row(self.loops("load_k" + suffix)[-1])
        else:
            super().load_keys(suffix)

    def load_values(self, suffix: str) -> None:
        """v turned. Where rows or columns are clamped, or codes are numbers to be, a plain copy comes first."""
        sch = self.sch
        load = sch.get_sblock("load_v" + suffix)
        turned = sch.cache_write(load, 0, "global")
        sch.transform_layout(turned, ("write", 0), lambda n, e: (e, n))
        copied = self.padded or suffix != "" or self.spec.value_dtype is not None
        if copied:
            self.row(self.loops("load_v" + suffix)[-1])
        else:
            sch.compute_inline(load)
        n, e = self.loops(turned)[-2:]
        n0, n1 = sch.split(n, [None, amx.KEYS])
        e0, e1 = sch.split(e, [None, amx.COLUMNS])
        sch.reorder(n0, e0, n1, e1)
        sch.tensorize(n1, amx.turn(self.held if copied else self.spec.dtype))

    def score(self, suffix: str) -> None:
        sch = self.sch
        qk, modify = sch.get_sblock("qk" + suffix), sch.get_sblock("modify" + suffix)
        n, m, d = self.loops(qk)[-3:]
        n0, n1 = sch.split(n, [None, amx.ROWS])
        m0, m1 = sch.split(m, [None, amx.LANES])
        sch.reorder(n0, m0, n1, m1)
        sch.reverse_compute_at(modify, m0, preserve_unit_loops=True)
        self.product(n1, d, self.held if suffix or self.copies.keys else self.spec.dtype)
        self.finish_tile(modify, False)
        self.maximum(suffix, n0, m0, False)
        self.ask_ahead(suffix, n0)

    def weighted_sum(self, suffix: str) -> None:
        sch = self.sch
        pv, accumulate = sch.get_sblock("pv" + suffix), sch.get_sblock("accumulate" + suffix)
        e, m, n = self.loops(pv)[-3:]
        e0, e1 = sch.split(e, [None, amx.ROWS])
        m0, m1 = sch.split(m, [None, amx.LANES])
        sch.reorder(m0, e0, e1, m1)
        sch.reverse_compute_at(accumulate, e0, preserve_unit_loops=True)
        self.product(e1, n, self.held)
        self.finish_tile(accumulate, False)

    def product(self, rows: Any, reduction: Any, source: str) -> None:
        """Make the loops from `rows` to `reduction` one intrinsic."""
        self.sch.tensorize(rows, amx.product(source, int(self.sch.get(reduction).extent)))


class MatrixSchedule(TileSchedule):
    """`TileSchedule` with AArch64's matrix products, which work on vector registers."""

    def products(self) -> str:
        return mmla.llvm_text()
