"""Peak memory of long calls: tiles and splits, never a matrix of scores, never a cache in another form."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import resource, sys
import torch
from attncc import attention, stats

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

heads, key_heads, rows, keys, dim, dtype, codes, causal = {arguments}
make = lambda h, n: torch.randn(1, h, n, dim).to(dtype)
q, k, v = make(heads, rows), make(key_heads, keys), make(key_heads, keys)
scale = None
if codes is not None:
    k, v = (t.float().mul_(16).to(codes) for t in (k, v))
    scale = torch.full((1, key_heads, keys), 1 / 16)
call = lambda n, m: attention(q[:, :, :n], k[:, :, :m], v[:, :, :m], is_causal=causal, enable_gqa=True,
                              k_scale=None if scale is None else scale[..., :m],
                              v_scale=None if scale is None else scale[..., :m])
call(min(rows, 64), 64)  # compiles
before = peak()
call(rows, keys)
assert stats().fallbacks == 0
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "most"),
    [
        # heads, key heads, query rows, keys, head size, dtype, codes, causal; MiB for the result and tiles
        ("1, 1, 32768, 32768, 64, torch.float32, None, True", 8 + 24),
        ("1, 1, 32768, 32768, 64, torch.bfloat16, None, True", 4 + 24),
        ("32, 8, 1, 32768, 128, torch.bfloat16, None, False", 24),
        ("32, 8, 1, 32768, 128, torch.bfloat16, torch.int8, False", 24),
        ("8, 8, 40, 32768, 128, torch.float32, torch.float8_e4m3fn, False", 24),
    ],
)
def test_peak_of_a_long_call(case: str, most: float) -> None:
    """Scores of 32768 keys and as many rows would take 4 GiB, a dequantised cache 256 MiB.

    The process is one of its own: a peak does not come down again. Earlier peaks hide what lies below them, so inputs
    are made without detours larger than they are.
    """
    program = _PROGRAM.format(arguments=case)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= most, f"{done.stdout.strip()} MiB"
