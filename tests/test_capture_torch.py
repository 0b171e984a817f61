"""What PyTorch itself holds to be attention: Inductor's SDPA patterns, and the samples of its own tests.

Both lists are asked of the torch that is installed: a newer one adds cases.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from capture import assert_same, capture_directly
from sampling import one_in
from torch import Tensor
from torch._inductor.fx_passes import fuse_attention as inductor

SMALL = {1024: 6, 128: 8}
"""Sizes of Inductor's examples that are for large GPUs, and what stands for them."""


@functools.cache
def patterns() -> dict[str, tuple[Callable[..., Any], list[Tensor], dict[str, Any]]]:
    """The functions that Inductor replaces by `scaled_dot_product_attention` where nothing is dropped."""
    found = {}
    for name, given in inductor._get_sfdp_patterns(torch.device("cpu")):
        if name.endswith("_inference"):
            generator = torch.Generator().manual_seed(len(found))
            args = [filled(x, generator) for x in given["example_inputs"]]
            found[name.removeprefix("_sfdp_")] = (given["search_fn"], args, given["scalar_workaround"])
    return found


def filled(example: Tensor, generator: torch.Generator) -> Tensor:
    """Random values in the form of an example."""
    shape = [SMALL.get(n, n) for n in example.shape]
    values = torch.randn(shape, generator=generator).to(example.dtype)
    if example.dtype == torch.bool:
        return values | (torch.arange(shape[-1]) == 0)
    if not example.ndim:
        return values.abs() + 1
    if shape == list(example.shape):
        values = torch.empty_strided(shape, example.stride(), dtype=example.dtype).copy_(values)
    return values


def variants() -> list[Any]:
    """All patterns; those of a batch of one and of half precision among the slow tests."""
    slow = [pytest.mark.slow]
    return [pytest.param(n, marks=slow if "_half" in n or "_bs1" in n else []) for n in patterns()]


@pytest.mark.parametrize("name", variants())
def test_a_pattern_of_inductor_is_fused(name: str) -> None:
    function, args, numbers = patterns()[name]
    program = functools.partial(function, **numbers)
    seen = capture_directly(program, args, dynamic=args[0].shape[:1])
    assert (len(seen.fused), seen.reasons) == (1, [])
    assert_same(seen.result, program(*args), tolerance=1e-4)


def test_all_patterns_are_there() -> None:
    """Every numbered function that Inductor has, in one of its forms."""
    known = {n for n in dir(inductor) if n.startswith("_sfdp_pattern_")}
    tried = {f"_sfdp_{name}".removesuffix("_inference") for name in patterns()}
    missing = {n for n in known if not any(t == n or t.startswith(f"{n}_") for t in tried)}
    assert len(known) >= 20
    assert not missing


def samples(dtype: torch.dtype) -> Iterator[Any]:
    """The samples of `scaled_dot_product_attention` in PyTorch's own tests."""
    from torch.testing._internal.common_methods_invocations import op_db

    (found,) = (op for op in op_db if op.name == "nn.functional.scaled_dot_product_attention")
    yield from found.sample_inputs("cpu", dtype)


@pytest.mark.parametrize("dtype", one_in(2, [torch.float32, torch.bfloat16]), ids=str)
def test_samples_of_opinfo(dtype: torch.dtype) -> None:
    """Fused and equal where nothing is dropped, refused where something is."""
    count = 0
    for sample in samples(dtype):
        tensors = {n: x for n, x in sample.kwargs.items() if isinstance(x, Tensor)}
        fixed = {n: x for n, x in sample.kwargs.items() if n not in tensors}
        args = [sample.input, *sample.args, *tensors.values()]

        def program(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor, names=tuple(tensors), fixed=fixed) -> Tensor:
            named = dict(zip(names, rest, strict=True))
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, **named, **fixed)

        seen = capture_directly(program, args)
        count += 1
        if fixed.get("dropout_p", 0.0) > 0:
            assert not seen.fused
            assert ["draws random numbers" in reason for reason in seen.reasons] == [True]
            continue
        assert (len(seen.fused), seen.reasons) == (1, []), str(sample)
        torch.testing.assert_close(seen.result.float(), program(*args).float(), atol=2e-2, rtol=2e-2, equal_nan=True)
    assert count >= 20
