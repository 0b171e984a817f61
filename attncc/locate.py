"""Where in the user's program an FX node comes from."""

from __future__ import annotations

import re
from pathlib import Path

from torch import fx

_FRAME = re.compile(r'File "(?P<file>.+?)", line (?P<line>\d+), in (?P<name>.+)\n\s*(?P<code>.*)')
_LIBRARIES = ("site-packages", "dist-packages", "/torch/", "<frozen", "<eval_with_key>")


def location(node: fx.Node) -> tuple[str, str]:
    """`file.py:12` and the line of code: the innermost frame outside of installed libraries, else outside of torch."""
    frames = list(_FRAME.finditer(str(node.meta.get("stack_trace") or "")))
    if not frames:
        return "", ""
    users = [f for f in frames if not any(part in f["file"] for part in _LIBRARIES)]
    models = [f for f in frames if "/torch/" not in f["file"]]
    frame = (users or models or frames)[-1]
    return f"{Path(frame['file']).name}:{frame['line']}", frame["code"].strip()
