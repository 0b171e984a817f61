"""What a device does for a tuner: functions that TVM's RPC server offers, in a process that is forked for each session.

They run kernels as a user of that machine would: loaded by `attncc.runtime`, on torch's threads, timed by what times
candidates everywhere (`attncc.tuning.worker`). A kernel that crashes takes its session with it; one that does not end
is ended, with its session, by the alarm. The device then serves the next session.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attncc.target import Target

if TYPE_CHECKING:
    from attncc.tuning.worker import Built, Job

DESCRIBE, PREPARE, MEASURE = "attncc.device.describe", "attncc.device.prepare", "attncc.device.measure"
"""Names of the functions."""


@dataclass
class _Session:
    """What the process of one session knows."""

    target: Target
    job: Job | None = None
    default: Built | None = None


def register(target: Target) -> None:
    """Offer the functions to the sessions of this process's children, for kernels that were compiled for `target`."""
    import tvm_ffi

    # Imported before the fork, so that a session starts in a moment. None of these runs a parallel loop.
    from attncc.runtime import native
    from attncc.tuning import wire, worker  # noqa: F401

    native.load_libraries()
    session = _Session(target)
    for name, function in ((DESCRIBE, _describe), (PREPARE, _prepare), (MEASURE, _measure)):
        tvm_ffi.register_global_func(name, _answering(function, session), override=True)


def _answering(function: Callable[..., dict[str, Any]], session: _Session) -> Callable[..., str]:
    def answer(*arguments: str | bytes) -> str:
        try:
            return json.dumps(function(session, *arguments))
        except Exception as error:  # the session goes on: it is the request that was wrong
            return json.dumps({"failure": f"{type(error).__name__}: {error}"[-2000:]})

    return answer


def _describe(session: _Session) -> dict[str, Any]:
    from attncc.tuning.description import Description

    return Description.here(session.target).data


def _prepare(session: _Session, request: str, task: str, tensors: bytes, kernel: bytes) -> dict[str, Any]:
    """Make a task's operands and their reference, and time the default's `kernel`, which must be right."""
    import torch

    from attncc.runtime import launcher
    from attncc.tuning import wire, worker

    asked = json.loads(request)
    launcher.after_clean_fork()
    made = wire.unpacked(str(task), bytes(tensors), session.target)
    folder = Path(tempfile.mkdtemp(dir="."))  # in the session's folder, which the server removes
    torch.save(made.operands, folder / "sample")
    decisions = dict(made.default.decisions)
    threads = torch.get_num_threads()
    session.job = worker.Job(
        made.spec, made.schedules, made.problem, made.target, decisions, folder / "sample", threads
    )
    session.default = (decisions, bytes(kernel))
    with _alarm(asked["limit"]):
        return {"turns": worker.measure(session.job, session.default, session.default)}


def _measure(session: _Session, request: str, *kernels: bytes) -> dict[str, Any]:
    """Check and time kernels; several of them, and SDPA, in interleaved turns."""
    from attncc.tuning import worker

    job, default, asked = session.job, session.default, json.loads(request)
    if job is None or default is None:
        raise RuntimeError("no task was prepared in this session")
    built = [(each, bytes(kernel)) for each, kernel in zip(asked["decisions"], kernels, strict=True)]
    with _alarm(asked["limit"]):
        if asked["turns"] is None:
            return {"outcomes": [_tried(job, default, each) for each in built]}
        found = worker.compare(job, default, built, asked["turns"])
    return {"outcomes": [found[str(n)] for n in range(len(built))], "sdpa": found.get("sdpa")}


def _tried(job: Job, default: Built, candidate: Built) -> Sequence[float] | str:
    from attncc.tuning import worker

    try:
        return worker.measure(job, default, candidate)
    except Exception as error:  # wrong results, or a module that LLVM refuses
        return f"{error}"[-2000:]


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End this process where what is inside takes longer: the signal's default, which needs nobody's cooperation."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
