"""What a schedule family is: which attentions it takes, its decisions, its kernel, and how a call is cut into tiles.

A family is stateless and knows neither torch nor the cache. Only `module` needs TVM, and imports it when called.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from attncc.spec import AttentionSpec
from attncc.target import Target

if TYPE_CHECKING:
    from attncc._tvm import IRModule

Decisions = Mapping[str, int]
"""Named schedule decisions: tile sizes and the like. With the spec, the target and the family they name a kernel."""


@dataclass(frozen=True)
class Problem:
    """The run-time sizes of one call. All but `kv_len` are at least 1; `heads` counts query heads."""

    batch: int
    heads: int
    q_len: int
    kv_len: int
    threads: int


@dataclass(frozen=True)
class Launch:
    """What a kernel needs beside the user's tensors."""

    work: npt.NDArray[np.int32]
    """[n_tiles, 4]: a row a tile; the columns are the family's. TVM gives each thread a contiguous run of rows."""
    workspaces: tuple[tuple[int, ...], ...] = ()
    """Shapes of the float32 (float64 for a float64 spec) scratch tensors, in order of argument."""


@dataclass(frozen=True)
class Declined:
    """A family's refusal of a spec on a target; returned, not raised, so that the reason can be shown."""

    reason: str


class Family(ABC):
    """One way to compile attention for a kind of target.

    `name` is stable and unique ("cpu.prefill.fp32") and part of cache keys; `regime` says for which sizes it is meant.
    """

    name: str
    regime: Literal["prefill", "decode", "any"]

    @abstractmethod
    def declines(self, spec: AttentionSpec, target: Target) -> Declined | None:
        """Why this family does not compile `spec` for `target`, or None when it does."""

    @abstractmethod
    def suits(self, spec: AttentionSpec, problem: Problem) -> bool:
        """Whether this regime is the right one for these run-time sizes (another may still be correct)."""

    @abstractmethod
    def decisions(self, spec: AttentionSpec, target: Target) -> dict[str, int]:
        """Analytic defaults, from the target's vector width, registers and caches."""

    def space(self, spec: AttentionSpec, target: Target) -> dict[str, tuple[int, ...]]:
        """What tuning may choose from, by decision, in rising order: `decisions` is one point of it.

        Every combination is valid for `module` but those that `unfit` names. A family that has nothing to tune offers
        its decisions alone.
        """
        return {name: (value,) for name, value in self.decisions(spec, target).items()}

    def unfit(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> str | None:
        """Why decisions that are in the space each do not go together, or None where they do, as the defaults must."""
        return None

    @abstractmethod
    def module(self, spec: AttentionSpec, target: Target, decisions: Decisions) -> IRModule:
        """Algorithm and schedule, ready for `tvm.compile`: one PrimFunc "attention". Deterministic.

        Raises ValueError when the decisions are not in this family's space.
        """

    @abstractmethod
    def launch(self, spec: AttentionSpec, decisions: Decisions, problem: Problem) -> Launch:
        """The work table of a call, balanced over `problem.threads`, and the workspaces it needs."""
