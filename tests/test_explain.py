"""`attncc.explain`: what it says must be enough to act on."""

import json

import torch
import torch.nn.functional as F
from torch import Tensor

import attncc
from attncc.locate import location


def two_sites(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    good = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return good + torch.softmax(q @ k.mT, dim=-2) @ v  # softmax over the queries


def test_a_fused_and_a_refused_site_with_their_lines() -> None:
    report = attncc.explain(two_sites, *(torch.randn(2, 4, 64, 16) for _ in range(3)))
    fused, refused = sorted(report.sites, key=lambda site: not site.fused)
    assert fused.fused and fused.spec is not None and fused.spec.head_dim == 16
    assert fused.kernel.startswith("cpu.") and fused.regime in ("prefill", "any")
    assert fused.location.startswith("test_explain.py:") and "scaled_dot_product_attention" in fused.source
    assert not refused.fused and "softmax" in refused.reason
    assert "softmax over the queries" in refused.source
    assert report.graphs == 1


def test_the_report_reads_as_text_and_as_json() -> None:
    report = attncc.explain(two_sites, *(torch.randn(2, 4, 64, 16) for _ in range(3)))
    assert "2 found, 1 fused" in str(report)
    assert len(json.loads(report.to_json())["sites"]) == 2


def test_training_says_how_gradients_are_computed() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    (site,) = attncc.explain(lambda q, k, v: torch.softmax(q @ k.mT, -1) @ v, q, k, v).sites
    assert "recomputed" in site.backward


def test_decode_shapes_name_the_decode_kernel() -> None:
    q, k, v = torch.randn(1, 8, 1, 64), torch.randn(1, 8, 512, 64), torch.randn(1, 8, 512, 64)
    (site,) = attncc.explain(lambda q, k, v: F.scaled_dot_product_attention(q, k, v), q, k, v).sites
    assert site.regime == "decode"


def test_a_compiled_model_and_an_exported_program_can_be_explained() -> None:
    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    x = torch.randn(1, 2, 8, 16)
    assert attncc.explain(attncc.compile(Wrapped()), x).fused == 1
    assert attncc.explain(torch.export.export(Wrapped(), (x,)), x).fused == 1


def test_a_library_that_calls_attention_is_named_rather_than_torch() -> None:
    trace = '  File "/x/site-packages/models/llama.py", line 7, in forward\n    y = flex(q, k, v)\n'
    trace += '  File "/x/site-packages/torch/nn/attention/flex_attention.py", line 9, in flex\n    out = hop(q)\n'
    node = torch.fx.Graph().placeholder("x")
    node.meta["stack_trace"] = trace
    assert location(node) == ("llama.py:7", "y = flex(q, k, v)")
