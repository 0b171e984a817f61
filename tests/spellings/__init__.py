"""Attention as a hundred authors write it: `SPELLINGS`, gathered from the modules of this folder."""

from spellings import authors, caches, calls, heads, masks, normalizers, outputs, products, refused, scores, softmaxes
from spellings.registry import SPELLINGS, Sizes, Spelling

__all__ = [
    "SPELLINGS",
    "Sizes",
    "Spelling",
    "authors",
    "caches",
    "calls",
    "heads",
    "masks",
    "normalizers",
    "outputs",
    "products",
    "refused",
    "scores",
    "softmaxes",
]
