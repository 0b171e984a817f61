"""Programs that try to be fused wrongly: `ADVERSITIES`, gathered from the modules of this folder."""

from adversities import memory_and_masks, positions, scores_and_weights, sizes_and_axes
from adversities.registry import ADVERSITIES

__all__ = ["ADVERSITIES", "memory_and_masks", "positions", "scores_and_weights", "sizes_and_axes"]
