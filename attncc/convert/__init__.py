"""FX to IR: one file a family of ATen operators, each a table of small functions. `convert` is the way in."""

from attncc.convert import (
    activations,
    attention,
    composed,
    contractions,
    convolutions,
    creation,
    distances,
    pointwise,
    views,
)
from attncc.convert.driver import Converted, Source, convert
from attncc.convert.sizes import fix_divided_sizes, hints

__all__ = [
    "Converted",
    "Source",
    "activations",
    "attention",
    "composed",
    "contractions",
    "convert",
    "convolutions",
    "creation",
    "distances",
    "fix_divided_sizes",
    "hints",
    "pointwise",
    "views",
]
