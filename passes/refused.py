"""Why a rewrite does not apply."""

from __future__ import annotations


class Refused(Exception):
    """A check failed: `reason` in a user's words, and the IR nodes (by name) that it is about."""

    def __init__(self, reason: str, *nodes: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.nodes = nodes
