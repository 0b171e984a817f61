"""Parts of Dynamo's graph that stand for a whole computation, written out before the graph is traced.

FlexAttention's higher-order operator, the fused inference kernels of `nn.MultiheadAttention` and
`nn.TransformerEncoderLayer`, `vmap` regions, checkpointed bodies that need no gradient: one file each.
"""

from attncc.expand.driver import expand
from attncc.expand.regions import NotFlat

__all__ = ["NotFlat", "expand"]
