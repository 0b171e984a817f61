"""Every Transformers configuration that can be made small, compiled: which attention is fused, and why some is not.

    python tests/models/sweep.py --out sweep.jsonl [--implementation eager sdpa] [--only llama bert] [--seconds 60]

Each model has a limit of processor time. The file grows by a line a model; models that are in it already are left out,
so that an interrupted sweep goes on. `--table` prints what the file says.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import time
import unittest.mock
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

POPULAR = """
bert roberta llama mistral qwen2 qwen3 gemma2 gemma3_text gpt2 t5 bart whisper vit clip_text_model
clip_vision_model distilbert phi3 mixtral deepseek_v3 gpt_oss swin detr wav2vec2 deberta-v2 electra albert
opt falcon bloom gpt_neox marian pegasus sam_vision_model dinov2 siglip_vision_model cohere blip_text_model
modernbert mpnet xlnet layoutlmv3 longformer big_bird sam2_vision_model perceiver conditional_detr rt_detr
groupvit_text_model blip-2 mllama_vision_model deberta funnel roformer convbert luke prophetnet reformer led
squeezebert ibert mobilebert nystromformer yoso mra longt5 udop pix2struct xlm flaubert ctrl openai-gpt gptj
gpt_neo codegen mpt dbrx jamba zamba recurrent_gemma diffllama nemotron deepseek_v2 deepseek_v32 glm4 minimax
llama4_text gemma3n_text qwen3_next kimi_linear longcat_flash doge beit vit_mae videomae timesformer vivit swinv2
pvt segformer cvt levit mobilevit hiera dinov3_vit siglip2_vision_model owlvit groupvit maskformer mask2former
oneformer grounding-dino deformable_detr dab-detr sam_mask_decoder vitdet vjepa2 wav2vec2-conformer wav2vec2-bert
seamless_m4t_v2 sew-d wavlm hubert speech_to_text speecht5 clap_audio_model audio-spectrogram-transformer musicgen
encodec mimi moshi bark vits fastspeech2_conformer parakeet_encoder granite_speech_encoder qwen2_5_omni_text
qwen2_5_vl_vision qwen2_vl_text qwen3_vl_vision patchtst timesfm time_series_transformer autoformer informer
decision_transformer tapas lxmert visual_bert vilt bridgetower_text_model flava_text_model idefics
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--implementation", nargs="+", default=["eager", "sdpa"])
    parser.add_argument("--only", nargs="+", help="these model types")
    parser.add_argument("--seconds", type=int, default=90, help="of processor time, a model")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--table", action="store_true", help="print the results, run nothing")
    parser.add_argument("--json", action="store_true", help="print them for programs")
    arguments = parser.parse_args()
    if not arguments.table:
        sweep(arguments.out, arguments.implementation, arguments.only, arguments.seconds, arguments.jobs)
    from models.sweep_table import show, summary

    if arguments.json:
        print(json.dumps(summary(read(arguments.out)), indent=1))
    else:
        show(read(arguments.out))


def read(path: Path) -> list[dict[str, Any]]:
    """The results so far, the latest of each model and implementation."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(r["model"], r["implementation"]): r for r in lines}.values())


def sweep(path: Path, implementations: list[str], only: list[str] | None, seconds: int, jobs: int) -> None:
    """Run what the file has not yet, `jobs` models at a time."""
    from transformers import CONFIG_MAPPING

    import attncc.backend
    import attncc.integrations.transformers
    import attncc.runtime.build

    attncc.integrations.transformers.register()
    torch.set_num_threads(1)
    done = {(r["model"], r["implementation"]) for r in read(path)} if only is None else set()
    first = POPULAR.split()
    types = only or sorted(CONFIG_MAPPING, key=lambda t: first.index(t) if t in first else len(first))
    waiting = [(t, i) for i in implementations for t in types if (t, i) not in done]
    workers: dict[Any, Worker] = {}
    while waiting or workers:
        while waiting and len(workers) < jobs:
            worker = Worker(seconds)
            workers[worker.connection] = worker
            worker.take(*waiting.pop(0))
        for connection in multiprocessing.connection.wait(list(workers)):
            worker = workers[connection]
            with path.open("a") as file:
                file.write(json.dumps(worker.result()) + "\n")
            if waiting and worker.fit():
                worker.take(*waiting.pop(0))
            else:
                worker.stop()
                del workers[connection]


class Worker:
    """A process that runs one model after the other: most of the time of a first one goes into waking PyTorch up."""

    MOST = 30
    """Models before a fresh process takes over, so that what they leave behind does not add up."""

    def __init__(self, seconds: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.connection, send = fork.Pipe()
        self.process = fork.Process(target=_work, args=(send, seconds))
        self.process.start()
        send.close()
        self.number = 0
        self.task = ("", "")

    def take(self, model_type: str, implementation: str) -> None:
        """Begin with a model."""
        self.task = (model_type, implementation)
        self.number += 1
        self.connection.send(self.task)

    def result(self) -> dict[str, Any]:
        """What came of the model; waits for it."""
        try:
            result: dict[str, Any] = self.connection.recv()
        except EOFError:
            self.process.join()
            self.number = self.MOST
            result = {"error": f"the process died: {self.process.exitcode}", "stage": "died"}
        result |= {"model": self.task[0], "implementation": self.task[1]}
        print(str({k: v for k, v in result.items() if k != "sites"})[:600], flush=True)
        return result

    def fit(self) -> bool:
        """Whether it may take another model."""
        return self.number < self.MOST

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _work(connection: Any, seconds: int) -> None:
    """Models within `seconds` of processor time each: other work on the machine makes no difference."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    signal.signal(signal.SIGPROF, _too_long)
    torch._dynamo.config.suppress_errors = True  # what Dynamo cannot trace runs as it is, and the rest is compiled
    while True:
        model_type, implementation = connection.recv()
        stage, start = ["build"], time.process_time()
        torch._dynamo.reset()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            result = run(model_type, implementation, stage)
        except torch._dynamo.exc.TorchDynamoException as error:
            result = {"error": f"{type(error).__name__}: {error}"[:600], "stage": "dynamo"}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[:3000], "stage": stage[-1]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        result["seconds"] = round(time.process_time() - start, 1)
        connection.send(result)


def _too_long(*_: Any) -> None:
    raise TimeoutError("too much processor time")


class Softmaxes(TorchDispatchMode):
    """Counts softmaxes of rank 3 and more, and fused attentions: about what there is to be found."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "softmax" in name and "log_softmax" not in name and args[0].ndim > 2:
            self.count += 1
        self.count += "scaled_dot_product_flash_attention_for_cpu" in name
        return func(*args, **(kwargs or {}))


def run(model_type: str, implementation: str, stage: list[str]) -> dict[str, Any]:
    """Build, compile and compare one model; `stage` gets the name of what begins."""
    from models.classes import model_classes
    from models.shrink import build
    from transformers import CONFIG_MAPPING

    import attncc.backend
    from attncc.backend import compile_graph
    from attncc.locate import location
    from attncc.options import Options
    from attncc.prune import prune

    config_class = CONFIG_MAPPING[model_type]
    left: list[tuple[str, str]] = []
    rewrite = attncc.backend.rewrite

    def rewriting(aten: torch.fx.GraphModule, **options: Any) -> Any:
        """Fuses a graph and notes the softmaxes that stay in it and that something reads."""
        fused, found, history = rewrite(aten, **options)
        prune(fused)
        left.extend(location(n) for n in fused.graph.nodes if "softmax" in str(n.target) and "log" not in str(n.target))
        return fused, found, history

    registered = implementation == "attncc"
    model, inputs = build(config_class, model_classes(config_class), "eager" if registered else implementation)
    found: list[Any] = []
    graphs: list[int] = []

    def backend(gm: torch.fx.GraphModule, example_inputs: Any) -> Any:
        graphs.append(1)
        return compile_graph(gm, example_inputs, Options(), lambda sites, *_: found.extend(sites))

    with torch.no_grad():
        stage.append("eager")
        torch.manual_seed(1)  # for models that draw random numbers
        with Softmaxes() as softmaxes:
            expected = model(**inputs)
        stage.append("compile")
        attncc.stats(reset=True)
        noted = unittest.mock.patch.object(attncc.backend, "rewrite", rewriting)
        with noted, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.manual_seed(1)
            if registered:
                model.set_attn_implementation(implementation)
                actual = model(**inputs)
            else:
                actual = torch.compile(model, backend=backend)(**inputs)
    result: dict[str, Any] = {
        "class": type(model).__name__,
        "inputs": {n: list(t.shape) for n, t in inputs.items() if isinstance(t, torch.Tensor)},
        "softmaxes": softmaxes.count,
        "calls": attncc.stats().calls,
        "found": len(found),
        "fused": sum(f.fused for f in found),
        "graphs": len(graphs),
        "reasons": dict(Counter(f.reason for f in found if not f.fused)),
        "left": dict(Counter(f"{place} {line}" for place, line in left)),
        "sites": [[f.location, f.source, f.reason or str(f.spec)] for f in found],
        "warnings": [str(w.message)[:300] for w in caught if "attncc" in str(w.message)],
        "difference": difference(actual, expected),
    }
    stage.append("compare")
    if not result["difference"] < 1e-5:
        torch.manual_seed(1)
        result["again"] = difference(model(**inputs), expected)
        if getattr(model.config, "_experts_implementation", None):
            model.set_experts_implementation("eager")  # grouped products take no float64
        exact = model.double()(**{n: _doubled(v) for n, v in inputs.items()})
        result["to_float64"] = [difference(actual, exact), difference(expected, exact)]
    return result


def _doubled(value: Any) -> Any:
    """An input with its floating-point tensors in float64."""
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: _doubled(v) for name, v in value.items()}
    return type(value)(_doubled(v) for v in value) if isinstance(value, list | tuple) else value


def difference(a: Any, b: Any) -> float:
    """The largest difference between floating-point tensors of two outputs, relative to the largest element."""
    worst = 0.0
    pairs = zip(_tensors(a), _tensors(b), strict=False)
    for x, y in pairs:
        x, y = x.double(), y.double()
        if x.shape != y.shape or not torch.equal(x.isnan(), y.isnan()):
            return float("inf")
        x, y = x.nan_to_num(), y.nan_to_num()
        if y.numel():
            worst = max(worst, float((x - y).abs().max() / y.abs().max().clamp(min=1e-6)))
    return worst


def _tensors(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output] if output.is_floating_point() else []
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [t for o in output for t in _tensors(o)]
    return []


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
