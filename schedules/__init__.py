"""Schedule families: how an attention is computed on a kind of target.

One folder a target, one file a family. `families` lists them from special to general; `select` takes the first that fits.
"""

from __future__ import annotations

from attncc.schedules.family import Decisions, Declined, Family, Launch, Problem

__all__ = ["Decisions", "Declined", "Family", "Launch", "Problem"]
