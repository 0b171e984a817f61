"""Which attention a benchmark computes: sizes, dtype and mask, with the work and the traffic that they imply."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from attncc.bench import masks
from attncc.bench.caches import CACHES, quantised, restored
from attncc.bench.scores import SCORES, ScoreMod

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
CHECKED = 1024
"""Query rows of each head that are checked where there are more than twice as many."""
FEW = 16
"""Query rows a key head, up to which it is the reading of keys and values that decides the time."""


@dataclass(frozen=True)
class Case:
    """One attention: q [batch, heads, q_len, head_dim], k and v [batch, kv_heads, kv_len, head_dim].

    Masks are aligned to the first key (query i sees key j <= i), as PyTorch's `is_causal` is; a window of w keeps
    |i - j| < w; with a prefix of p, all queries see the first p keys, and those after them causally. Raises ValueError
    for sizes that do not make an attention, or leave a query without a key.

    Four masks are known by tensors alone (`masks.tensors`), and narrow the others: `filled` keys of a cache, of which
    the last queries are the newest; `padded` batches, that share of whose keys is real; `documents` packed in a row;
    a `tree` of drafted tokens, the last of the keys, of which each sees those that it follows.
    """

    batch: int = 1
    heads: int = 12
    kv_heads: int = 12
    q_len: int = 1536
    kv_len: int = 1536
    head_dim: int = 64
    dtype: str = "float32"
    causal: bool = False
    window: int | None = None
    filled: int | None = None
    padded: float | None = None
    documents: int | None = None
    prefix: int | None = None
    tree: bool = False
    score: str | None = None
    """A function of the score beside the scale: a name in `scores.SCORES`."""
    bilinear: bool = False
    """The score is scale · q W kᵀ, with one W [head_dim, head_dim] (`weight`)."""
    value_dim: int | None = None
    """Columns of v where they are not `head_dim`."""
    cache: str | None = None
    """Codes that k and v are kept in, with a scale for each token of a head: a name in `caches.CACHES`."""
    outputs: str = ""
    """What is wanted beside the attention's output: "lse" or "weights"."""
    threads: int | None = None
    """Threads that attncc may use, where not all."""
    capacity: int | None = None
    """Rows of memory that a head's keys are the first of, as in a cache that is longer than what is given of it."""

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a positive number")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is not one of {', '.join(DTYPES)}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window={self.window} is not a positive number")
        if self.window is not None and self.q_len >= self.kv_len + self.window:
            raise ValueError(
                f"with window={self.window}, query {self.q_len - 1} sees none of kv_len={self.kv_len} keys"
            )
        if self.filled is not None and not self.q_len <= self.filled <= self.kv_len:
            raise ValueError(f"filled={self.filled} is not between q_len={self.q_len} and kv_len={self.kv_len}")
        if self.capacity is not None and self.capacity < self.kv_len:
            raise ValueError(f"capacity={self.capacity} is less than kv_len={self.kv_len}")
        if self.padded is not None and not 0 < self.padded <= 1:
            raise ValueError(f"padded={self.padded} is not a share of the keys")
        if self.documents is not None and (self.documents < 1 or self.q_len != self.kv_len):
            raise ValueError(f"documents={self.documents} in a row of q_len={self.q_len}, kv_len={self.kv_len}")
        if self.prefix is not None and (self.prefix < 1 or not self.causal or self.window is not None):
            raise ValueError(f"prefix={self.prefix} goes with causal=True and without a window")
        if self.tree and self.kv_len < self.q_len:
            raise ValueError(f"tree=True: q_len={self.q_len} drafted tokens are the last of kv_len={self.kv_len} keys")
        if self.score is not None and self.score not in SCORES:
            raise ValueError(f"score={self.score!r} is not one of {', '.join(SCORES)}")
        if self.cache is not None and self.cache not in CACHES:
            raise ValueError(f"cache={self.cache!r} is not one of {', '.join(CACHES)}")
        if self.outputs not in ("", "lse", "weights"):
            raise ValueError(f"outputs={self.outputs!r} is not one of lse, weights")

    @property
    def label(self) -> str:
        """Short and complete: `B1 H12 S1536 D64 float32 causal`."""
        heads = f"H{self.heads}" if self.heads == self.kv_heads else f"H{self.heads}/{self.kv_heads}"
        lengths = f"S{self.q_len}" if self.q_len == self.kv_len else f"Sq{self.q_len} Skv{self.kv_len}"
        words = [f"B{self.batch}", heads, lengths, self._widths, self.dtype]
        words += ["causal"] * self.causal + ["tree"] * self.tree
        texts = {
            "window": "window {}",
            "filled": "{} filled",
            "padded": "{:.0%} real",
            "documents": "{} documents",
            "prefix": "prefix {}",
            "score": "{}",
            "cache": "{} cache",
            "capacity": "of {}",
            "threads": "{} threads",
        }
        words += [text.format(value) for name, text in texts.items() if (value := getattr(self, name)) is not None]
        words += ["bilinear"] * self.bilinear + [f"with {self.outputs}"] * bool(self.outputs)
        return " ".join(words)

    @property
    def _widths(self) -> str:
        return f"D{self.head_dim}" if self.value_dim is None else f"D{self.head_dim}/{self.value_dim}"

    @property
    def columns(self) -> int:
        """Columns of v and of the output."""
        return self.value_dim or self.head_dim

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return DTYPES[self.dtype]

    @property
    def decode(self) -> bool:
        """Few query rows over many keys: reading k and v decides the time, not arithmetic."""
        return self.q_len * self.heads // self.kv_heads <= FEW and self.kv_len > self.q_len

    @property
    def masked(self) -> bool:
        """Whether some query does not see some key."""
        shares = (self.window, self.filled, self.padded, self.documents)
        return self.causal or self.tree or any(m is not None for m in shares)

    @property
    def only_causal(self) -> bool:
        """Whether `is_causal` says all that there is to say of the mask."""
        return self.prefix is None and not replace(self, causal=False).masked

    def score_mod(self) -> ScoreMod | None:
        """The function of the score, in FlexAttention's form."""
        return None if self.score is None else SCORES[self.score](self.heads, self.kv_len)

    def weight(self) -> torch.Tensor:
        """W [head_dim, head_dim] of the bilinear score, which keeps the scores' variance."""
        made = torch.randn(self.head_dim, self.head_dim, generator=torch.Generator().manual_seed(3))
        return (made / self.head_dim**0.5).to(self.torch_dtype)

    def visible(self, rows: torch.Tensor) -> torch.Tensor | None:
        """bool [1 or batch, 1, len(rows), kv_len]: which keys those query rows see; None where all are."""
        return masks.visible(self, rows)

    @property
    def flops(self) -> int:
        """Operations of the two products over the visible pairs, a multiply-add counted as two."""
        pairs = self.batch * self.q_len * self.kv_len
        if self.masked:
            seen = [keep for rows in self.chunks(self.all_rows) if (keep := self.visible(rows)) is not None]
            pairs = sum(int(keep.sum()) * (self.batch // keep.shape[0]) for keep in seen)
        return 2 * self.heads * (self.head_dim + self.columns) * pairs

    @property
    def bytes_read(self) -> int:
        """Bytes of the rows of k and v that some query sees, each read once, with their scales."""
        size: int = self.torch_dtype.itemsize if self.cache is None else 1
        row = (self.head_dim + self.columns) * size + (0 if self.cache is None else 8)
        rows = self.batch * self.kv_len
        if self.masked:
            parts = [keep for part in self.chunks(self.all_rows) if (keep := self.visible(part)) is not None]
            seen = torch.stack([keep.any(2) for keep in parts])
            rows = int(seen.any(0).sum()) * (self.batch // seen.shape[1])
        return self.kv_heads * rows * row

    @property
    def bytes_moved(self) -> int:
        """`bytes_read`, and those of q and of the outputs."""
        size: int = self.torch_dtype.itemsize
        rows = self.batch * self.heads * self.q_len
        more = rows * self.kv_len * size if self.outputs == "weights" else 0
        return self.bytes_read + rows * (self.head_dim + self.columns) * size + more

    @property
    def all_rows(self) -> torch.Tensor:
        """The numbers of all query rows."""
        return torch.arange(self.q_len)

    @property
    def checked_rows(self) -> torch.Tensor:
        """Those that are compared with float64: all, or `CHECKED` at random where that would take long."""
        if self.q_len <= 2 * CHECKED:
            return self.all_rows
        return torch.randperm(self.q_len, generator=torch.Generator().manual_seed(4))[:CHECKED].sort().values

    def chunks(self, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Query rows in parts whose float64 scores stay under about 64 MB a head."""
        parts: tuple[torch.Tensor, ...] = rows.split(max(1, (1 << 23) // self.kv_len))
        return parts

    def inputs(self, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v of unit variance, the same for the same seed.

        In memory [B, S, H, D], as a model's projections make them; in decode [B, H, S, D], as caches are kept.
        """
        generator = torch.Generator().manual_seed(seed)

        def rows(heads: int, length: int, width: int) -> torch.Tensor:
            made = torch.randn(self.batch, length, heads, width, generator=generator)
            laid_out = made.to(self.torch_dtype).transpose(1, 2)
            return laid_out.contiguous() if self.decode else laid_out

        q, held = rows(self.heads, self.q_len, self.head_dim), self.capacity or self.kv_len
        k, v = (rows(self.kv_heads, held, width)[:, :, : self.kv_len] for width in (self.head_dim, self.columns))
        return q, k, v


def defaults(quick: bool = False) -> tuple[Case, ...]:
    """What `attncc bench` runs when no shape is given: prefill and decode, fp32 and bf16. `quick` shortens both."""
    length, cache = (512, 1024) if quick else (1536, 4096)
    prefill = [Case(q_len=length, kv_len=length, dtype=dtype) for dtype in ("float32", "bfloat16")]
    causal = [Case(q_len=length, kv_len=length, dtype="float32", causal=True)]
    decode = [Case(1, 32, 32, 1, cache, 128, dtype) for dtype in ("float32", "bfloat16")]
    return (*prefill, *causal, *decode)


def reference(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The outputs of `case` in float64, straight from the formula, a head and a few rows at a time.

    The attention, then what `outputs` names, all in the rows `checked_rows`.
    """
    parts = [_reference_head(case, q, k, v, b, h) for b in range(case.batch) for h in range(case.heads)]
    size = (case.batch, case.heads)
    return tuple(torch.stack(heads).unflatten(0, size) for heads in zip(*parts, strict=True))


def _reference_head(
    case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, b: int, h: int
) -> tuple[torch.Tensor, ...]:
    """The outputs of head h of batch b."""
    kv_head = h * case.kv_heads // case.heads
    mod = case.score_mod()
    keys, values = (t[b, kv_head].double() for t in (k, v))
    if case.cache is not None:
        keys, values = (restored(*quantised(t[b, kv_head], case.cache), torch.float64) for t in (k, v))
    found = []
    for rows in case.chunks(case.checked_rows):
        queries = q[b, h, rows].double()
        if case.bilinear:
            queries = queries @ case.weight().double()
        scores = queries @ keys.T / math.sqrt(case.head_dim)
        if mod is not None:
            at = (torch.tensor(b), torch.tensor(h), rows[:, None], torch.arange(case.kv_len))
            scores = mod(scores, *at)
        keep = case.visible(rows)
        if keep is not None:
            scores.masked_fill_(~keep[b % keep.shape[0], 0], float("-inf"))
        weights = scores.softmax(-1)
        more = {"": (), "lse": (scores.logsumexp(-1),), "weights": (weights,)}[case.outputs]
        found.append((weights @ values, *more))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
