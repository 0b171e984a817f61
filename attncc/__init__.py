"""attncc: a graph compiler for attention.

compiled = attncc.compile(model)                    # a module or function with its attention fused
compiled = torch.compile(model, backend="attncc")   # the same through torch.compile
out = attncc.attention(q, k, v, is_causal=True)     # one fused operator, called directly
print(attncc.explain(model, *inputs))               # every attention of a model: fused, or why not
print(attncc.tune(model, *inputs))                  # search faster kernels for them on this machine
attncc.export(model, inputs, "model.pt2")           # compiled ahead, into one file
model = attncc.load("model.pt2")                    # which a process without TVM and a compiler runs
"""

from attncc.attention import attention
from attncc.compiler import compile, warmup
from attncc.explain import explain
from attncc.export import export, load
from attncc.info import info
from attncc.report import Report, Site
from attncc.runtime.stats import stats
from attncc.spec import AttentionSpec
from attncc.tune import tune

__version__ = "0.1.0"
__all__ = [
    "AttentionSpec", "Report", "Site", "attention", "compile", "explain", "export", "info", "load", "stats", "tune",
    "warmup",
]  # fmt: skip
