"""Quantised caches: keys and values as codes of one byte, with a scale for each token of each head."""

from __future__ import annotations

import torch
from torch import Tensor

CACHES = {"int8": torch.int8, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
"""By the name that cases give."""


def quantised(rows: Tensor, cache: str) -> tuple[Tensor, Tensor]:
    """Codes [..., S, D] and float32 scales [..., S]: the largest element of a row has the largest code."""
    dtype = CACHES[cache]
    most = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scales = rows.float().abs().amax(-1).clamp(min=1e-12) / most
    codes = rows.float() / scales[..., None]
    return (codes.round() if dtype == torch.int8 else codes).to(dtype), scales


def restored(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that codes and scales stand for."""
    return codes.to(dtype) * scales[..., None].to(dtype)
