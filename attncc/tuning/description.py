"""What a device says that it is: its target, its threads and its versions, as JSON that is checked field by field.

What comes from a device is data from another machine: it is parsed as JSON, its types and ranges are looked at, and the
target's texts reach a compiler only if they look like such names.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Self

from attncc.target import FEATURES, Target
from attncc.tuning import fields
from attncc.tuning.record import machine
from attncc.tuning.versions import Versions

LONGEST = 1 << 20
"""Characters of an answer."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_MOST_THREADS = 1 << 16


@dataclass(frozen=True)
class Description:
    """A device: what kernels are compiled for, and what runs them."""

    target: Target
    threads: int
    """Threads of torch there."""
    versions: Versions
    host: str
    """The machine's own name, for people."""

    @classmethod
    def here(cls, target: Target) -> Self:
        """This process's, compiled for `target`."""
        import platform

        import torch

        return cls(target, torch.get_num_threads(), Versions.current(target), fields.line_of(platform.node()))

    @property
    def data(self) -> dict[str, Any]:
        """What `from_json` reads, as JSON data."""
        target = asdict(self.target) | {"features": sorted(self.target.features)}
        versions = asdict(self.versions)
        return {"target": target, "threads": self.threads, "versions": versions, "host": self.host}

    @classmethod
    def from_json(cls, text: object) -> Self:
        """The description in a device's answer. Raises ValueError, saying what is wrong, for anything else."""
        data = answer(text)
        target = fields.target_of(fields.part_of(data, "target"))
        if target.kind != "cpu" or not _NAME.fullmatch(target.mcpu) or not _NAME.fullmatch(target.triple):
            raise ValueError(f"{str(target)[:100]!r} is no CPU that kernels are compiled for")
        if unknown := sorted(target.features - {*FEATURES.get(target.arch, ())}):
            raise ValueError(f"features {str(unknown)[:100]} are none of {target.arch or 'an unknown architecture'}")
        threads = fields.integer_of(data, "threads", 1)
        if threads > _MOST_THREADS:
            raise ValueError(f"it has {threads} threads")
        versions = fields.versions_of(fields.part_of(data, "versions"))
        return cls(target, threads, versions, fields.text_of(data, "host"))

    def refusal(self, target: Target) -> str | None:
        """Why kernels that are built here for `target` are not measured on this device, or None if they are."""
        here = Versions.current(target)
        if self.versions != here:
            ours, theirs = asdict(here), asdict(self.versions)
            name = next(name for name in ours if ours[name] != theirs[name])
            both = f"its {name} is {str(theirs[name])[:20]}, the tuner's {str(ours[name])[:20]}"
            return f"{both}: install the same attncc"
        if machine(self.target) != machine(target):
            return f"it is another machine: {facts(self.target)}, and kernels are tuned for {facts(target)}"
        return None


def facts(target: Target) -> str:
    """What tells machines apart, in words."""
    caches = f"L1 {target.l1 >> 10}, L2 {target.l2 >> 10}, L3 {target.l3 >> 10} KiB"
    return f"{target.mcpu} {target.triple} ({' '.join(sorted(target.features)) or 'baseline'}; {caches})"


def answer(text: object) -> dict[str, Any]:
    """The JSON object that a device answered. Raises ValueError for anything else."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise ValueError("its answer is no text, or a very long one")
    return fields.object_of(text)
