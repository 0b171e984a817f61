"""`attncc.explain`: run a model once through the compiler and say what became of each attention in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from attncc.advice import next_step
from attncc.compiler import original
from attncc.options import Options
from attncc.report import Report, Site
from attncc.runtime.dispatch import problem_of
from attncc.schedules import Problem, select
from attncc.spec import AttentionSpec
from attncc.target import Target, detect

if TYPE_CHECKING:
    from attncc.repro import Program
    from attncc.rewrite import Found


def explain(model: Any, *args: Any, **kwargs: Any) -> Report:
    """Compile `model` for these inputs, call it once, and report every softmax between two contractions.

    `model` is what `attncc.compile` takes, compiled already or not; the call runs under the caller's grad mode and
    does to the model's state what any call does. Raises whatever the model raises.
    """
    from attncc.backend import compile_graph
    from attncc.repro import Program

    sites: list[Site] = []
    seconds: list[float] = []

    def observe(found: list[Found], graph: fx.GraphModule) -> None:
        sites.extend(_site(f, Program(graph, f.body, f.node)) for f in found)

    def attncc(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        start = time.perf_counter()
        compiled = compile_graph(gm, example_inputs, Options(), observe)
        seconds.append(time.perf_counter() - start)
        return compiled

    target = original(model)
    if isinstance(target, torch.export.ExportedProgram):
        target = target.module()
    run = torch.compile(target, backend=attncc)
    run(*args, **kwargs)
    return Report(tuple(sites), graphs=len(seconds), compile_seconds=sum(seconds))


def _site(found: Found, program: Program) -> Site:
    """The user's view of a `Found`, with the kernel that its sizes select."""
    if not found.fused:
        step = next_step(found.reason)
        return Site(False, found.location, found.source, found.reason, step, found.spec, program=program)
    backward = "recomputed through PyTorch" if found.requires_grad else ""
    kernel, regime, decisions = _kernel(found)
    return Site(
        True, found.location, found.source, spec=found.spec, sizes=found.sizes, kernel=kernel, regime=regime,
        decisions=decisions, backward=backward, program=program,
    )  # fmt: skip


def _kernel(found: Found) -> tuple[str, str, str]:
    """The schedule family that serves a fused site at the sizes of this call, its regime, and where its decisions come
    from."""
    target = _target(found.device)
    if found.spec is None or target is None:
        return f"PyTorch (no kernels for {found.device})", "any", ""
    from attncc.tuning.choose import choice

    sizes = found.size_hints
    of_call = (sizes["B"], sizes["H"], sizes["Sq"], sizes["Skv"])
    on_cpu = target.kind == "cpu"
    problem = problem_of(found.spec, *of_call) if on_cpu else Problem(*of_call, threads=target.cores)
    try:
        family = select(found.spec, problem, target)
    except LookupError:
        return f"PyTorch (no kernel family takes it on {target.mcpu})", "any", ""
    chosen = choice(_as_looked_up(found.spec, on_cpu), family, target, problem)
    return chosen.family.name, chosen.family.regime, chosen.source


def _as_looked_up(spec: AttentionSpec, on_cpu: bool) -> AttentionSpec:
    """The spec that records are kept under: for a GPU with the usual scale in the place of a scalar, which it nearly
    always is."""
    if on_cpu or not spec.scalars:
        return spec
    from attncc.runtime.cuda import dispatch

    return dispatch.special(spec, (dispatch.usual_scale(spec.head_dim),))


def _target(device: str) -> Target | None:
    """What kernels for tensors on such a device are built for."""
    if device == "cuda":
        from attncc.runtime.cuda import devices

        return devices.target(torch.cuda.current_device())
    return detect() if device == "cpu" else None
