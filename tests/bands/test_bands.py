"""Attention over a band of keys in overlapping chunks is fused wherever every element is where it has to be.

The spelling is Longformer's, with places for slips: each of those is another function, and none may be fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from capture import Capture, assert_same, capture_directly
from sampling import one_in
from torch import Tensor, fx

from attncc.bands import alike
from attncc.bands.terms import Band

D = 6


@dataclass(frozen=True)
class Chunked:
    """Attention of rows to the `w` keys before and behind them, in chunks of 2 w."""

    w: int = 2
    chunks: int = 3
    batch: int = 2
    heads: int = 3
    rows_first: bool = False
    """Whether tensors are [B, S, H, D] rather than [B, H, S, D]."""
    masked: bool = False
    zeroed: bool = False
    """Whether the weights of padding are set to 0."""
    unfolded: bool = False
    slip: str = ""

    @property
    def length(self) -> int:
        return 2 * self.w * self.chunks

    def inputs(self) -> tuple[Tensor, ...]:
        """q, k, v and which rows are padding."""
        generator = torch.Generator().manual_seed(self.w + self.chunks)
        shape = (self.batch, self.heads, self.length, D)
        q, k, v = (torch.randn(shape, generator=generator) * 2 for _ in range(3))
        padding = torch.rand(self.batch, self.length, generator=generator) < 0.4
        padding[-1, self.w :] = True
        given = [x.transpose(1, 2).contiguous() for x in (q, k, v)] if self.rows_first else [q, k, v]
        return (*given, padding)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        if not self.rows_first:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.slip != "none, but nothing is copied":
            q, k = q / math.sqrt(D), k * 1
        scores = self.band(q, k)
        if self.slip == "keys changed":
            k.mul_(2)
        if self.masked:
            added = padding.to(q.dtype).masked_fill(padding, -100.0)[:, :, None, None]
            scores += self.band(torch.ones_like(added), added)
        p = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
        if self.zeroed:
            p = p.masked_fill(padding[:, :, None, None], 0.0)
        if self.slip == "weights by key":
            p = p.masked_fill(
                self.band(torch.ones_like(q[..., :1, :1]), padding[:, :, None, None].to(q.dtype)) > 0, 0.0
            )
        if self.slip == "weights scaled":
            p = p * p[:, :1]
        o = self.weighted(p, v)
        return o.transpose(1, 2) if self.rows_first else o

    def band(self, q: Tensor, k: Tensor) -> Tensor:
        """Scores [B, S, H, 2 w + 1]."""
        w, slip, (b, s, h, d) = self.w, self.slip, q.shape
        q, k = (x.transpose(1, 2).reshape(b * h, s, d) for x in (q, k))
        if slip == "keys rolled":
            k = k.roll(1, 1)
        x = torch.einsum("bcxd,bcyd->bcxy", self.overlapping(q), self.overlapping(k))
        count = x.shape[1]
        x = F.pad(x, (0, 0, 0, 1)).view(b * h, count, 2 * w, 2 * w + 1)
        scores = x.new_zeros(b * h, count + 1, w, 2 * w + 1)
        scores[:, :-1, :, w:] = x[:, :, :w, : w + 1]
        scores[:, -1, :, w:] = x[:, -1, w:, : w + 1]
        off = int(slip == "lower triangle")
        scores[:, 1:, :, :w] = x[:, :, -(w + 1 + off) : -1 - off, w + 1 :]
        if slip != "corner":
            scores[:, 0, 1:w, 1:w] = x[:, 0, : w - 1, 1 - w :]
        if slip == "last chunk":
            scores[:, -1, :, w:] = x[:, -1, w - 1 : -1, : w + 1]
        if slip == "one score":
            scores[:, 1, 1, w] = scores[:, 1, 0, w]
        scores = scores.view(b, h, s, 2 * w + 1).transpose(2, 1)
        self.hide(scores)
        return scores

    def overlapping(self, x: Tensor) -> Tensor:
        """Chunks of 2 w rows, w apart."""
        w = self.w
        if self.unfolded:
            return x.unfold(1, 2 * w, w).transpose(2, 3)
        x = x.view(x.shape[0], x.shape[1] // (2 * w), 2 * w, x.shape[2])
        size, stride = list(x.shape), list(x.stride())
        return x.as_strided([size[0], size[1] * 2 - 1, *size[2:]], [stride[0], stride[1] // 2, *stride[2:]])

    def hide(self, scores: Tensor) -> None:
        """-inf where there is no key."""
        w, nothing = self.w, torch.finfo(scores.dtype).min if self.slip == "finite" else -math.inf
        before = scores.new_ones(w, w + 1).tril()
        before = (before if self.slip == "unflipped" else before.flip([0]))[None, :, None, :]
        behind = before.flip((1, 3))
        for mask, first in ((before, True), (behind, False)):
            if self.slip == "unhidden" or (self.slip == "half hidden" and not first):
                continue
            part = scores[:, :w, :, : w + 1] if first else scores[:, -w:, :, -(w + 1) :]
            part.copy_(torch.full_like(part, nothing).where(mask.expand(part.shape).bool(), part))

    def weighted(self, p: Tensor, v: Tensor) -> Tensor:
        """The sum over the band, [B, H, S, D]."""
        w, (b, s, h, d) = self.w, v.shape
        p = p.transpose(1, 2).reshape(b * h, s // w, w, 2 * w + 1)
        v = v.transpose(1, 2).reshape(b * h, s, d)
        off = int(self.slip == "values")
        v = F.pad(v, (0, 0, w + off, w - off), value=math.inf if self.slip == "infinite" else -1.0)
        strides = v.stride()
        v = v.as_strided((b * h, s // w, 3 * w, d), (strides[0], w * strides[1], strides[1], strides[2]))
        p = F.pad(p, (0, w + 1)).view(b * h, s // w, -1)[:, :, :-w].view(b * h, s // w, w, 3 * w + 1)[..., :-1]
        if self.slip == "weights dropped":
            p = F.pad(p[..., 1:], (1, 0))
        return torch.einsum("bcwd,bcdh->bcwh", p, v).view(b, h, s, d)


def captured(program: Chunked, dynamic: bool | tuple[int, ...] = False) -> Capture:
    """The program compiled, and its result compared with eager's in float64."""
    inputs = program.inputs()
    seen = capture_directly(program, inputs, dynamic=dynamic)
    exact = program(*(x.double() if x.is_floating_point() else x for x in inputs))
    torch.testing.assert_close(seen.result.double(), exact, atol=1e-4, rtol=1e-4, equal_nan=True)
    assert_same(seen.result, program(*inputs))
    return seen


@pytest.mark.parametrize(
    "program",
    [
        Chunked(),
        Chunked(w=3, chunks=1),
        Chunked(w=4, chunks=2, rows_first=True),
        Chunked(w=3, chunks=4, masked=True),
        Chunked(w=2, chunks=5, masked=True, zeroed=True, rows_first=True),
        Chunked(w=2, chunks=2, zeroed=True, unfolded=True),
        Chunked(batch=1, heads=1, masked=True),
        Chunked(batch=1, rows_first=True, masked=True, zeroed=True),
        Chunked(heads=1, w=5, chunks=1, unfolded=True, masked=True),
    ],
    ids=str,
)
def test_a_band_is_an_attention_with_a_window(program: Chunked) -> None:
    seen = captured(program)
    assert seen.reasons == []
    (found,) = seen.fused
    assert found.sizes["Sq"] == found.sizes["Skv"] == program.length
    (call,) = seen.attentions()
    assert call.args[5] == [program.w, program.w]
    assert "i - j" in str(found.spec)
    left = {str(n.target) for n in seen.graphs[0].graph.nodes}
    assert not left & {"aten.as_strided.default", "aten.copy_.default", "aten.softmax.int", "aten.einsum.default"}


WRONG_ROWS = "an element stands at the place of another query or key"
UNEVEN = "not every score of a query and a key is made in the same way"
OTHERS = "weights and values meet that are not of one key"
SLIPS = {
    "lower triangle": WRONG_ROWS,
    "last chunk": WRONG_ROWS,
    "one score": WRONG_ROWS,
    "keys rolled": WRONG_ROWS,
    "corner": UNEVEN,
    "unhidden": OTHERS,
    "half hidden": OTHERS,
    "unflipped": OTHERS,
    "finite": OTHERS,
    "values": OTHERS,
    "infinite": "values are padded with infinity",
    "weights by key": WRONG_ROWS,
    "weights dropped": "not every weight is used once in the product with V",
    "keys changed": "aten.mul",
}


@pytest.mark.parametrize("slip", one_in(3, SLIPS))
def test_a_slip_is_refused_with_its_reason(slip: str) -> None:
    for program in (Chunked(slip=slip), Chunked(w=3, chunks=2, masked=True, rows_first=True, slip=slip)):
        seen = captured(program)
        assert not seen.attentions()
        (reason,) = seen.reasons
        assert "which attncc does not follow: " in reason
        assert SLIPS[slip] in reason.rpartition(": ")[2]


def test_weights_that_are_computed_with_are_refused() -> None:
    assert not captured(Chunked(slip="weights scaled")).attentions()


@pytest.mark.slow
def test_lengths_that_are_not_fixed_are_refused() -> None:
    seen = captured(Chunked(), dynamic=True)
    assert not seen.attentions()
    (reason,) = seen.reasons
    assert "not a fixed number" in reason


def test_batch_and_heads_may_change() -> None:
    """They are carried through as they are: only lengths are cut into chunks."""
    program = Chunked(batch=5, heads=7, masked=True, zeroed=True)
    seen = captured(program, dynamic=(5, 7))
    assert seen.reasons == []
    found = seen.fused[0]
    assert isinstance(found.sizes["B"], str) and isinstance(found.sizes["H"], str)


def written_into_zeros(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """All weights, in a larger tensor, of which the rest is multiplied with padding."""
    p = torch.zeros(*q.shape[:2], q.shape[1] + 3)
    p[..., : q.shape[1]] = (q @ k.mT).softmax(-1)
    return p @ F.pad(v, (0, 0, 0, 3))


def turned_round(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scores and values in another order of keys."""
    return (q @ k.mT).roll(2, -1).softmax(-1) @ v.roll(2, 1)


@pytest.mark.parametrize("function", [written_into_zeros, turned_round])
def test_all_keys_in_another_place_are_an_attention_without_a_mask(function: Callable[..., Tensor]) -> None:
    q, k, v = (torch.randn(2, 7, D, generator=torch.Generator().manual_seed(n)) for n in range(3))
    seen = capture_directly(function, (q, k, v))
    assert seen.reasons == []
    (found,) = seen.fused
    assert found.spec is not None and found.spec.mask is None
    assert_same(seen.result, function(q, k, v))


def test_the_replay_has_the_strides_of_the_inputs() -> None:
    """Overlapping views name places in memory: rows of inputs with the batch inside lie elsewhere than dense ones."""
    program = Chunked(rows_first=True, batch=1, heads=1, slip="none, but nothing is copied")
    q, k, v, padding = program.inputs()
    wide = [torch.cat([x, x + 1], -1)[..., :D] for x in (q, k, v)]
    seen = capture_directly(program, (*wide, padding))
    assert seen.reasons == []
    assert_same(seen.result, program(*wide, padding))


def test_half_precision_is_cast_where_the_program_casts() -> None:
    program = Chunked(masked=True, zeroed=True)
    q, k, v, padding = program.inputs()
    given = (*(x.bfloat16() for x in (q, k, v)), padding)
    seen = capture_directly(program, given)
    assert seen.reasons == [] and len(seen.attentions()) == 1
    assert_same(seen.result, program(*given))


def test_layers_that_are_alike_are_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not so one in which the keys are changed in place."""
    proofs: list[fx.Node] = []

    def prove(node: fx.Node) -> Band:
        proofs.append(node)
        return original(node)

    original = alike.prove
    monkeypatch.setattr(alike, "prove", prove)
    plain, changed = Chunked(masked=True), Chunked(masked=True, slip="keys changed")

    def layers(q: Tensor, k: Tensor, v: Tensor, padding: Tensor) -> Tensor:
        for n in range(3):
            q = F.layer_norm(q, (D,))
            q = q + plain(q, k, v, padding) * (n + 1)
        return changed(F.layer_norm(q, (D,)), k, v, padding)

    inputs = plain.inputs()
    seen = capture_directly(layers, inputs)
    assert [f.spec.value_dim for f in seen.fused if f.spec is not None] == [D] * 3 and len(seen.reasons) == 1
    assert len(proofs) == 2
    assert "aten.mul_.Tensor writes to memory" in seen.reasons[0]
    assert_same(seen.result, layers(*inputs))


def test_what_goes_wrong_in_a_proof_leaves_the_graph_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(node: fx.Node) -> Band:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(alike, "prove", fail)
    seen = captured(Chunked())
    assert not seen.attentions()
    assert "cannot be followed (RuntimeError: no such operator)" in seen.reasons[0]
