"""The arguments of the attention operators as one value, so that each layer hands them on without listing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

Operands: TypeAlias = tuple[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[float], Sequence[int]]
"""q [B, H, Sq, query_dim], k [B, G, Skv, head_dim], v [B, G, Skv, value_dim]; then a spec's extras, scalars, integers.

A plain tuple: a class of its own would cost every call a tenth of its time.
"""
Call: TypeAlias = tuple[Tensor, Tensor, Tensor, Sequence[Tensor], Sequence[float], Sequence[int], str, str]
"""`Operands`, the spec's JSON and the layout: the arguments of the operators, in their order."""
