"""Which attention a benchmark computes: sizes, dtype and mask, with the work and the traffic that they imply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Case:
    """One attention: q [batch, heads, q_len, head_dim], k and v [batch, kv_heads, kv_len, head_dim].

    Masks are aligned to the first key (query i sees key j <= i), as PyTorch's `is_causal` is; a window of w keeps
    |i - j| < w. Raises ValueError for sizes that do not make an attention, or leave a query without a key.

    Three masks are known by tensors alone (`mask_tensors`), and narrow the others: `filled` keys of a cache, of which
    the last queries are the newest; `padded` batches, that share of whose keys is real; `documents` packed in a row.
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

    @property
    def label(self) -> str:
        """Short and complete: `B1 H12 S1536 D64 float32 causal`."""
        heads = f"H{self.heads}" if self.heads == self.kv_heads else f"H{self.heads}/{self.kv_heads}"
        lengths = f"S{self.q_len}" if self.q_len == self.kv_len else f"Sq{self.q_len} Skv{self.kv_len}"
        words = [f"B{self.batch}", heads, lengths, f"D{self.head_dim}", self.dtype]
        words += ["causal"] * self.causal
        texts = {
            "window": "window {}",
            "filled": "{} filled",
            "padded": "{:.0%} real",
            "documents": "{} documents",
            "capacity": "of {}",
        }
        words += [text.format(value) for name, text in texts.items() if (value := getattr(self, name)) is not None]
        return " ".join(words)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return DTYPES[self.dtype]

    @property
    def decode(self) -> bool:
        """Few query rows over many keys: reading k and v decides the time, not arithmetic."""
        return self.q_len * self.heads // self.kv_heads <= 8

    @property
    def masked(self) -> bool:
        """Whether some query does not see some key."""
        return self.causal or any(m is not None for m in (self.window, self.filled, self.padded, self.documents))

    def mask_tensors(self) -> dict[str, torch.Tensor]:
        """What tells the masks that are known by tensors, as models have it.

        "position" [q_len]: of a query, in a cache that ends in the queries; "real" bool [batch, kv_len], of lengths
        around the mean; "document" [kv_len]: the number of its document, of random lengths.
        """
        found = {}
        if self.filled is not None:
            found["position"] = torch.arange(self.q_len) + (self.filled - self.q_len)
        if self.padded is not None:
            spread = torch.linspace(0.5, 1.5, self.batch) if self.batch > 1 else torch.ones(1)
            lengths = (spread * self.padded * self.kv_len).long().clamp(1, self.kv_len)
            found["real"] = torch.arange(self.kv_len) < lengths[:, None]
        if self.documents is not None:
            cuts = torch.randperm(self.kv_len - 1, generator=torch.Generator().manual_seed(0))[: self.documents - 1]
            found["document"] = torch.zeros(self.kv_len, dtype=torch.int64).index_fill(0, cuts + 1, 1).cumsum(0)
        return found

    def visible(self, rows: range) -> torch.Tensor | None:
        """bool [1 or batch, 1, len(rows), kv_len]: which keys those query rows see; None where all are."""
        if not self.masked:
            return None
        i = torch.arange(rows.start, rows.stop)[:, None]
        j = torch.arange(self.kv_len)[None, :]
        keep = (j <= i) if self.causal else torch.ones(len(rows), self.kv_len, dtype=torch.bool)
        if self.window is not None:
            keep = keep & ((i - j).abs() < self.window)
        tensors = self.mask_tensors()
        if "position" in tensors:
            keep = keep & (j <= tensors["position"][i])
        if "document" in tensors:
            keep = keep & (tensors["document"][j] == tensors["document"][i])
        keep = keep[None, None]
        return keep & tensors["real"][:, None, None, :] if "real" in tensors else keep

    @property
    def flops(self) -> int:
        """Operations of the two products over the visible pairs, a multiply-add counted as two."""
        pairs = self.batch * self.q_len * self.kv_len
        if self.masked:
            seen = [keep for rows in self.chunks() if (keep := self.visible(rows)) is not None]
            pairs = sum(int(keep.sum()) * (self.batch // keep.shape[0]) for keep in seen)
        return 4 * self.heads * self.head_dim * pairs

    @property
    def bytes_read(self) -> int:
        """Bytes of the rows of k and v that some query sees, each read once."""
        size: int = self.torch_dtype.itemsize
        rows = self.batch * self.kv_len
        if self.masked:
            seen = torch.stack([keep.any(2) for part in self.chunks() if (keep := self.visible(part)) is not None])
            rows = int(seen.any(0).sum()) * (self.batch // seen.shape[1])
        return 2 * self.kv_heads * rows * self.head_dim * size

    def chunks(self) -> Iterator[range]:
        """Query rows in parts whose float64 scores stay under about 64 MB a head."""
        size = max(1, (1 << 23) // self.kv_len)
        return (range(start, min(start + size, self.q_len)) for start in range(0, self.q_len, size))

    def inputs(self, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q, k and v of unit variance, the same for the same seed.

        In memory [B, S, H, D], as a model's projections make them; in decode [B, H, S, D], as caches are kept.
        """
        generator = torch.Generator().manual_seed(seed)

        def rows(heads: int, length: int) -> torch.Tensor:
            made = torch.randn(self.batch, length, heads, self.head_dim, generator=generator)
            laid_out = made.to(self.torch_dtype).transpose(1, 2)
            return laid_out.contiguous() if self.decode else laid_out

        q, held = rows(self.heads, self.q_len), self.capacity or self.kv_len
        k, v = (rows(self.kv_heads, held)[:, :, : self.kv_len] for _ in range(2))
        return q, k, v


def defaults(quick: bool = False) -> tuple[Case, ...]:
    """What `attncc bench` runs when no shape is given: prefill and decode, fp32 and bf16. `quick` shortens both."""
    length, cache = (512, 1024) if quick else (1536, 4096)
    prefill = [Case(q_len=length, kv_len=length, dtype=dtype) for dtype in ("float32", "bfloat16")]
    causal = [Case(q_len=length, kv_len=length, dtype="float32", causal=True)]
    decode = [Case(1, 32, 32, 1, cache, 128, dtype) for dtype in ("float32", "bfloat16")]
    return (*prefill, *causal, *decode)


def reference(case: Case, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The attention of `case` in float64, straight from the formula, a head and a few rows at a time."""
    group = case.heads // case.kv_heads
    out = torch.empty(case.batch, case.heads, case.q_len, case.head_dim, dtype=torch.float64)
    for b in range(case.batch):
        for h in range(case.heads):
            keys, values = k[b, h // group].double(), v[b, h // group].double()
            for rows in case.chunks():
                scores = q[b, h, rows.start : rows.stop].double() @ keys.T / case.head_dim**0.5
                keep = case.visible(rows)
                if keep is not None:
                    scores.masked_fill_(~keep[b % keep.shape[0], 0], float("-inf"))
                out[b, h, rows.start : rows.stop] = scores.softmax(-1) @ values
    return out
