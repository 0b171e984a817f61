"""Artifacts: a model compiled ahead into one file, which a process without TVM and without a C toolchain runs.

Writing: `write` → `program` (torch.export, fused), `kernels` (→ `support`, `link`), `archive`.
Loading: `load` → `archive`, `machine`, `library` (→ the runtime, by `attncc.runtime.ahead`).
"""

from attncc.export.archive import ArtifactError
from attncc.export.load import Loaded, load
from attncc.export.write import Exported, export

__all__ = ["ArtifactError", "Exported", "Loaded", "export", "load"]
