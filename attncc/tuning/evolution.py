"""MetaSchedule's evolutionary search and XGBoost cost model over the named decisions of a schedule family.

A family builds its kernel from all decisions at once, outer tiles included, so there is no trace of schedule primitives
that MetaSchedule could replay. What it searches instead is a carrier: a PrimFunc of one block that stands for the
attention, with a `sample_categorical` for each decision, written into the block as an annotation. Traces of the carrier
mutate and replay in microseconds; the kernels are built by whoever measures, from the annotations.

TVM 0.27's MetaSchedule is driven by its `TuneContext` (propose, measure, notify), not by its `TaskScheduler`: measuring
here checks results, survives crashes and stops at a deadline. Three of its parts are ours:

- Its mutators know `sample_perfect_tile` and a few annotations, not a categorical decision in general: `_Mutator`.
- Its features are those of loops, of which a carrier has none: `_Features` gives the decisions, and the products of two
  (areas of tiles, sums in registers), as logarithms.
- Evolution restarts each round from the records of a database: MetaSchedule's `MemoryDatabase` holds them for the run,
  while ours keeps them for good.

Importing `tvm.s_tir.tensor_intrin`, which MetaSchedule does for intrinsics of schedules that are not used here, takes
10 to 25 s; an empty module in its place takes none.
"""

from __future__ import annotations

import itertools
import logging
import random
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from attncc.tuning.measure import Candidate, Outcome

POPULATION = 64
"""Traces of a generation. Spaces have hundreds to some ten thousand points."""
WARM = 12
"""Outcomes from which the cost model is asked; before, candidates are drawn at random."""
ROUND = 8
BLOCK = "attention"
_NEVER = 1 << 30


class Evolution:
    """A `Searcher` by MetaSchedule. Raises ImportError, naming the extra, where a package of it is missing."""

    def __init__(self, space: Mapping[str, tuple[int, ...]], default: Candidate, seed: int) -> None:
        ms = _metaschedule()
        from attncc._tvm import Target as TvmTarget

        self._ms, self._default = ms, default
        self._open = {name: values for name, values in space.items() if len(values) > 1}
        self._rng = rng = random.Random(seed)
        extractor = _features(ms, tuple(self._open))
        config = ms.cost_model.xgb_model.XGBConfig(max_depth=6, nthread=1, seed=seed)
        self._model = ms.cost_model.XGBModel(
            extractor=extractor, config=config, num_warmup_samples=WARM, early_stopping_rounds=20, verbose_eval=0
        )
        self._database = ms.database.MemoryDatabase()
        generator = ms.space_generator.ScheduleFn(self._sample, [], [], {_mutator(ms, rng): 1.0})
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION, init_min_unmeasured=ROUND, genetic_num_iters=3, eps_greedy=0.15
        )
        logger = logging.getLogger(__name__)
        logger.setLevel(logging.ERROR)  # each round reports on itself at great length
        self._context = ms.TuneContext(
            _carrier(), target=TvmTarget({"kind": "llvm", "num-cores": 1}), space_generator=generator,
            search_strategy=strategy, rand_state=seed % (1 << 30) + 1, num_threads=1, logger=logger,
        )  # fmt: skip
        self._spaces = self._context.generate_design_space()
        self._context.pre_tuning(_NEVER, ROUND, self._spaces, self._database, self._model)
        self._workload = self._database.commit_workload(self._context.mod)
        self._seen: dict[Candidate, None] = {}
        self._proposed: dict[Candidate, Any] = {}

    def propose(self, count: int) -> list[Candidate]:
        """Up to `count` new candidates, by what has been learnt. MetaSchedule gives `ROUND` at a time."""
        found: list[Candidate] = []
        for _ in range(8):  # it does not know of those that others measured, and may propose nothing else
            made = self._context.generate_measure_candidates()
            if made is None:
                break
            for measure_candidate in made:
                candidate = self._candidate(measure_candidate.sch)
                if candidate not in self._seen:
                    self._seen[candidate] = None
                    self._proposed[candidate] = measure_candidate
                    found.append(candidate)
            if len(found) >= count:
                break
        return found or self._drawn(count)

    def learn(self, candidates: Sequence[Candidate], outcomes: Sequence[Outcome]) -> None:
        """Train the cost model, and let what succeeded be parents of later generations."""
        ms, given, results = self._ms, [], []
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            self._seen[candidate] = None
            given.append(self._proposed.get(candidate) or self._replayed(candidate))
            seconds = None if outcome.seconds is None else [outcome.seconds]
            results.append(ms.runner.RunnerResult(seconds, outcome.failure or None))
        for measured, result in zip(given, results, strict=True):
            if result.run_secs:
                self._database.commit_tuning_record(
                    ms.database.TuningRecord(
                        measured.sch.trace, self._workload, result.run_secs, self._context.target, measured.args_info
                    )
                )
        self._model.update(self._context, given, results)
        self._context.notify_runner_results(given, results)

    def _sample(self, sch: Any) -> None:
        """The space, as MetaSchedule's `ScheduleFn` wants it: run once, and its trace mutated from then on."""
        block = sch.get_sblock(BLOCK)
        for name, values in self._open.items():
            chances = [1.0 / len(values)] * len(values)
            sch.annotate(block, name, sch.sample_categorical(list(values), chances))

    def _candidate(self, sch: Any) -> Candidate:
        annotated = sch.get(sch.get_sblock(BLOCK)).annotations
        return Candidate({**self._default.decisions, **{name: int(annotated[name]) for name in self._open}})

    def _drawn(self, count: int) -> list[Candidate]:
        """Candidates by chance: where nearly all are measured, evolution finds the last ones no more."""
        found: dict[Candidate, None] = {}
        for _ in range(200 * count):
            values = {name: self._rng.choice(choices) for name, choices in self._open.items()}
            candidate = Candidate({**self._default.decisions, **values})
            if candidate not in self._seen and len(found) < count:
                found[candidate] = None
        self._seen.update(found)
        return list(found)

    def _replayed(self, candidate: Candidate) -> Any:
        """MetaSchedule's candidate for decisions that it has not drawn itself."""
        from attncc._tvm import Schedule

        trace = self._spaces[0].trace
        wanted = [values.index(candidate.decisions[name]) for name, values in self._open.items()]
        for instruction, index in zip(_decided(trace), wanted, strict=True):
            trace = trace.with_decision(instruction, index, remove_postproc=True)
        sch = Schedule(self._context.mod)
        trace.apply_to_schedule(sch, remove_postproc=False)
        arguments = self._ms.arg_info.ArgInfo.from_entry_func(self._context.mod, remove_preproc=True)
        return self._ms.MeasureCandidate(sch, arguments)


def _metaschedule() -> Any:
    """`tvm.s_tir.meta_schedule`, imported without the intrinsics of all targets."""
    import tvm

    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        sys.modules[name] = module = types.ModuleType(name)
        tvm.s_tir.tensor_intrin = module
    try:
        import xgboost  # noqa: F401
        from tvm.s_tir import meta_schedule
    except ImportError as error:
        raise ImportError(f"tuning needs {error.name}: pip install 'attncc[tune]'") from error
    return meta_schedule


def _carrier() -> Any:
    """A PrimFunc with one block, which does next to nothing."""
    from attncc._tvm import IRBuilder, IRModule, T
    from attncc.algorithm.blocks import stage, store

    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_attr({"tirx.noalias": True, "global_symbol": "main"})
        out = T.match_buffer(T.arg("out_handle", T.handle()), (1,), "float32")
        with stage(BLOCK, "S", n=1) as (n,):
            store(out, [n], T.float32(0))
    return IRModule({"main": builder.get()})


def _decided(trace: Any) -> list[Any]:
    """The sampling instructions of a trace, in order."""
    return [instruction for instruction in trace.insts if instruction.kind.name == "SampleCategorical"]


def _mutator(ms: Any, rng: random.Random) -> Any:
    """A MetaSchedule mutator that draws one decision anew."""
    from tvm.ir.utils import derived_object

    @derived_object
    class _Mutator(ms.mutator.PyMutator):
        def _initialize_with_tune_context(self, context: Any) -> None:
            pass

        def apply(self, trace: Any, _: Any) -> Any:
            instruction = rng.choice(_decided(trace))
            count, now = len(instruction.attrs[0]), int(trace.decisions[instruction])
            drawn = rng.randrange(count - 1)
            return trace.with_decision(instruction, drawn + (drawn >= now), remove_postproc=True)

        def clone(self) -> Any:
            return _mutator(ms, rng)

    return _Mutator()


def _features(ms: Any, names: tuple[str, ...]) -> Any:
    """A MetaSchedule feature extractor over the annotations of the carrier's block."""
    from tvm.ir.utils import derived_object
    from tvm.runtime import tensor

    @derived_object
    class _Features(ms.feature_extractor.PyFeatureExtractor):
        def extract_from(self, context: Any, candidates: Iterable[Any]) -> list[Any]:
            found = []
            for candidate in candidates:
                annotated = candidate.sch.get(candidate.sch.get_sblock(BLOCK)).annotations
                found.append(tensor(features([int(annotated[name]) for name in names])))
            return found

    return _Features()


def features(decisions: Sequence[int]) -> Any:
    """float32 [1, n + n (n - 1) / 2]: logarithms of the decisions and of their products by twos."""
    logs = [float(np.log2(1 + max(value, 0))) for value in decisions]
    products = [one + two for one, two in itertools.combinations(logs, 2)]
    return np.array([[*logs, *products]], dtype="float32")
