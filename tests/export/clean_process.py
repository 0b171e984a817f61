"""Runs an artifact where `tvm` cannot be imported and no program found: `python clean_process.py ARTIFACT CASES`.

CASES is a file of torch.save with a list of (arguments, keyword arguments, expected result). Prints, as JSON, the
largest difference of each case, in the parent, in a forked child and in threads, and what the process has loaded.
"""

import json
import os
import sys
import threading
import time
from importlib.machinery import PathFinder


class WithoutTvm(PathFinder):
    """Finds what Python finds on its path, but no tvm."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """None for tvm."""
        return None if name.partition(".")[0] == "tvm" else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTvm
os.environ["PATH"] = "/nonexistent"

import torch  # noqa: E402

import attncc  # noqa: E402


def largest(found, expected):
    """The largest difference of two nested results."""
    if isinstance(expected, torch.Tensor):
        return float((found.double() - expected.double()).abs().max())
    keys = expected if isinstance(expected, dict) else range(len(expected))
    return max(largest(found[key], expected[key]) for key in keys)


def differences():
    """Of every case."""
    return [largest(loaded(*args, **kwargs), expected) for args, kwargs, expected in cases]


def in_child():
    """What `differences` gives in a forked child, where OpenMP may not be used."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)  # PyTorch's own operators would hang otherwise
        os.write(writer, json.dumps(differences()).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    return json.loads(os.read(reader, 1 << 16))


def in_threads():
    """The worst difference while several threads call at once."""
    found = []
    threads = [threading.Thread(target=lambda: found.extend(differences())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return max(found)


torch.set_num_threads(3)
cases = torch.load(sys.argv[2])
start = time.perf_counter()
loaded = attncc.load(sys.argv[1])
seconds = time.perf_counter() - start
alone, child = differences(), in_child()  # before there are threads: PyTorch's own operators hang in some children else
result = {"differences": alone, "child": child, "threads": in_threads(), "seconds": seconds}
with open("/proc/self/maps") as file:
    maps = file.read()
stats = attncc.stats()
print(
    json.dumps(
        {
            **result,
            "tvm": [name for name in sys.modules if name.partition(".")[0] == "tvm"],
            "libraries": [name for name in ("libtvm_runtime", "libtvm_compiler", "libLLVM") if name in maps],
            "calls": stats.calls,
            "compiles": stats.compiles,
            "fallbacks": stats.fallbacks,
            "families": sorted({kernel.name.split()[0] for kernel in stats.kernels}),
        }
    )
)
