"""`attncc.info()`: what is installed, what machine this is, and which kernels it can run. Made for bug reports."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING

from attncc.options import disabled
from attncc.target import Target, cuda_devices, detect

if TYPE_CHECKING:
    from rich.console import RenderableType

    from attncc.bench.peak import Peak
    from attncc.tuning.inventory import Held

PACKAGES = ("torch", "apache-tvm", "apache-tvm-ffi", "numpy", "networkx", "transformers")
DTYPES = ("float32", "bfloat16", "float16", "float64")
SUPPORT = (
    ("Python", "3.11, 3.12", ""),
    ("PyTorch", "2.11 to 2.13", "tested with 2.13"),
    (
        "Linux, x86-64",
        "yes",
        "AVX-512, AVX512-BF16, AVX2; AMX (bfloat16, float16) by emulation only; anything older through the fallback",
    ),
    (
        "Linux, aarch64; macOS, arm64",
        "untested",
        "NEON (bfdot, bfmmla) and SVE kernels run in our tests by emulation, on no machine of that kind",
    ),
    ("Windows", "untested", ""),
    (
        "NVIDIA GPU, sm_75 and up",
        "yes",
        "tensor cores from sm_80 on, for float16 and bfloat16. Run on an H100; others compiled and emulated. "
        "attncc tune --device cuda: not yet run on a GPU",
    ),
    ("other GPU", "no", "runs as PyTorch runs it"),
)
"""The support matrix: what, whether, and a remark. The README shows the same rows."""


@dataclass(frozen=True)
class FamilyInfo:
    """A schedule family and, for each dtype, why it cannot run plain attention on this target (None where it can)."""

    name: str
    regime: str
    declined: dict[str, str | None]


@dataclass(frozen=True)
class CudaFamilyInfo:
    """A schedule family for NVIDIA GPUs: which it is for, and the dtypes of plain attention that it runs there."""

    name: str
    regime: str
    gpus: str
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Info:
    """Versions, target and kernel families; `str()` reads well, `to_json()` is for machines."""

    versions: dict[str, str | None]
    system: str
    target: Target
    gpus: tuple[str, ...]
    threads: int
    cache: str
    disabled: bool
    families: tuple[FamilyInfo, ...]
    cuda_families: tuple[CudaFamilyInfo, ...] = ()
    tuned: tuple[Held, ...] = ()
    """The files that tuned decisions come from, in the order in which they are asked."""
    peak: Peak | None = None

    def to_json(self) -> str:
        """All of it as JSON text, with the support matrix."""
        target = self.target
        return json.dumps(
            {
                "versions": self.versions,
                "system": self.system,
                "target": {
                    "kind": target.kind,
                    "mcpu": target.mcpu,
                    "triple": target.triple,
                    "features": sorted(target.features),
                    "vector_bits": target.vector_bits,
                    "cores": target.cores,
                    "cache_bytes": {"l1": target.l1, "l2": target.l2, "l3": target.l3},
                },
                "gpus": list(self.gpus),
                "threads": self.threads,
                "cache": self.cache,
                "disabled": self.disabled,
                "tuned": [asdict(file) for file in self.tuned],
                "families": [{"name": f.name, "regime": f.regime, "declined": f.declined} for f in self.families],
                "cuda_families": [asdict(family) for family in self.cuda_families],
                "peak": self.peak and self.peak.to_json(),
                "support": [{"what": what, "supported": yes, "remark": remark} for what, yes, remark in SUPPORT],
            },
            indent=2,
        )

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(
            self._facts(), *self._peaks(), "", self._family_table(), "", self._cuda_table(), "", self._support_table()
        )

    def __str__(self) -> str:
        from attncc._rich import to_text

        return to_text(self)

    def _facts(self) -> RenderableType:
        from rich.table import Table
        from rich.text import Text

        target, table = self.target, Table.grid(padding=(0, 2))
        rows = {
            "versions": ", ".join(f"{name} {version or 'not installed'}" for name, version in self.versions.items()),
            "system": self.system,
            "target": f"{target.mcpu}, {target.triple}, {target.vector_bits}-bit vectors",
            "ISA": " ".join(sorted(target.features)) or "baseline",
            "cores": f"{target.cores}; torch uses {self.threads} thread{'s' * (self.threads != 1)}",
            "caches": f"L1 {_size(target.l1)} and L2 {_size(target.l2)} a core, L3 {_size(target.l3)}",
            "GPU": ", ".join(self.gpus) or "none",
            "kernel cache": self.cache,
            "tuned records": "\n".join(map(_told, self.tuned)) or "none; attncc tune makes some",
            "switched off": "yes, by ATTNCC_DISABLE" if self.disabled else "no",
        }
        for name, value in rows.items():
            table.add_row(Text(name, style="bold"), Text(value))
        return table

    def _peaks(self) -> list[RenderableType]:
        if self.peak is None:
            return []
        peak = self.peak
        bf16 = "no dot instruction" if peak.bf16_gflops is None else f"{peak.bf16_gflops:.0f} GFLOP/s"
        figures = f"float32 {peak.fp32_gflops:.0f} GFLOP/s, bfloat16 {bf16}, reads {peak.read_gbs:.1f} GB/s"
        text = f"measured on {peak.threads} threads: {figures}"
        return ["", text]

    def _family_table(self) -> RenderableType:
        from attncc._rich import table as new_table

        table = new_table("Kernel families, special to general", "kernel family", "regime", "runs here")
        for family in self.families:
            runs = [dtype for dtype, reason in family.declined.items() if reason is None]
            lines = [", ".join(runs)] if runs else []
            reasons = dict.fromkeys(reason for reason in family.declined.values() if reason is not None)
            for reason in reasons:
                lines.append(f"not {', '.join(d for d, why in family.declined.items() if why == reason)}: {reason}")
            table.add_row(family.name, family.regime, "\n".join(lines))
        return table

    def _cuda_table(self) -> RenderableType:
        from attncc._rich import table as new_table

        here = "" if self.gpus else ": none is here, and the tests compile and emulate them"
        table = new_table(f"Kernel families for NVIDIA GPUs{here}", "kernel family", "regime", "GPUs", "dtypes")
        for family in self.cuda_families:
            table.add_row(family.name, family.regime, family.gpus, ", ".join(family.dtypes))
        return table

    def _support_table(self) -> RenderableType:
        from attncc._rich import table as new_table

        table = new_table("Support", "", "supported", "remark")
        for row in SUPPORT:
            table.add_row(*row)
        return table


def info(*, measure: bool = False, say: Callable[[str], None] | None = None) -> Info:
    """Describe this installation: versions, detected target, kernel families available or not and why.

    With `measure`, also the multiply-add peak and the read bandwidth of the machine (about three seconds); `say` hears
    what is being measured. Imports TVM.
    """
    import torch

    from attncc import __version__
    from attncc.runtime import cache
    from attncc.tuning.inventory import held

    peak = None
    if measure:
        from attncc.bench import peak as roofline

        peak = roofline.measure(progress=say)
    target = detect()
    return Info(
        versions={"attncc": __version__, "Python": platform.python_version(), **{p: _version(p) for p in PACKAGES}},
        system=platform.platform(),
        target=target,
        gpus=cuda_devices(),
        threads=torch.get_num_threads(),
        cache=str(cache.root()),
        disabled=disabled(),
        families=_families(target),
        cuda_families=_cuda_families(),
        tuned=tuple(held(target)),
        peak=peak,
    )


def _families(target: Target) -> tuple[FamilyInfo, ...]:
    """Each family asked about plain attention with 64 head columns in every dtype."""
    from attncc import schedules
    from attncc.spec import AttentionSpec

    result = []
    for family in schedules.families(target):
        declined: dict[str, str | None] = {}
        for dtype in DTYPES:
            refusal = family.declines(AttentionSpec(dtype=dtype, head_dim=64, value_dim=64), target)
            declined[dtype] = None if refusal is None else refusal.reason
        result.append(FamilyInfo(family.name, family.regime, declined))
    return tuple(result)


def _cuda_families() -> tuple[CudaFamilyInfo, ...]:
    """Those of CUDA, asked about plain attention on the oldest GPU that each is for; no GPU is needed for that."""
    from attncc.runtime.cuda.devices import TRIPLE
    from attncc.schedules.cuda.families import CUDA
    from attncc.spec import AttentionSpec

    result = []
    for family in CUDA:
        oldest = Target("cuda", family.gpus.split()[0], TRIPLE, frozenset(), 1, 0, 0, 0)
        specs = {dtype: AttentionSpec(dtype=dtype, head_dim=64, value_dim=64) for dtype in DTYPES}
        dtypes = tuple(dtype for dtype, spec in specs.items() if family.declines(spec, oldest) is None)
        result.append(CudaFamilyInfo(family.name, family.regime, family.gpus, dtypes))
    return tuple(result)


def _told(file: Held) -> str:
    """What is used of a file of tuned records, and what is not."""
    if file.problem:
        return f"not used: {file.problem}"
    where = "shipped with attncc" if file.shipped else file.path
    rest = f"; {file.unused} more not (attncc db list says why)" if file.unused else ""
    return f"{file.used} used on this machine{rest}: {where}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _size(count: int) -> str:
    """Bytes in KiB or MiB, as caches are quoted."""
    return f"{count / (1 << 20):g} MiB" if count >= 1 << 20 else f"{count / (1 << 10):g} KiB"
