"""Eager float64 that is float64 all through: Transformers' eager attention takes its softmax in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float64(TorchFunctionMode):
    """Casts to float32 stay in float64: `softmax(scores, dtype=float32)`, `.float()`, `.to(float32)` of a float64.

    Without it a row that a mask of finfo.min hides entirely would be NaN: float64's finfo.min is -inf in float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if func is torch.Tensor.float:
                return args[0]
        return func(*args, **kwargs)
