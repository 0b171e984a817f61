"""Optuna's tree-structured Parzen estimator over the structural knobs of GPU kernels: tiles, warps, stages.

Most points of such a space do not go together, for want of shared memory or registers (`Family.unfit`). They are told
to Optuna as failed and never proposed, so they cost no trial; what was measured by an earlier run is told by
`add_trial`, and not proposed either. (Bergstra et al., "Algorithms for hyper-parameter optimization", 2011.)
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attncc.tuning.measure import Candidate, Outcome

WARM = 10
"""Outcomes from which the estimator is asked; before, candidates are drawn at random."""
ASKED = 6
"""Times that Optuna is asked for each candidate that is wanted: where most are measured, it names those again."""


class Tpe:
    """A `Searcher` by Optuna. Raises ImportError, naming the extra, where it is missing."""

    def __init__(
        self, space: Mapping[str, tuple[int, ...]], default: Candidate, points: Iterable[Candidate], seed: int
    ) -> None:
        """`points` are those of `space` that may be proposed."""
        self._optuna = optuna = _optuna()
        self._default, self._rng = default, random.Random(seed)
        self._open = {name: values for name, values in space.items() if len(values) > 1}
        # By their places: values are doublings, and the estimator measures distances.
        self._distributions = {
            name: optuna.distributions.IntDistribution(0, len(values) - 1) for name, values in self._open.items()
        }
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=WARM, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(sampler=sampler)
        self._left = dict.fromkeys(points)
        self._asked: dict[Candidate, Any] = {}

    def propose(self, count: int) -> list[Candidate]:
        """Up to `count` new candidates, by what has been learnt; the last of a space are drawn at random."""
        found: list[Candidate] = []
        for _ in range(ASKED * count):
            if len(found) == count or not self._left:
                return found
            trial = self._study.ask(self._distributions)
            candidate = self._candidate(trial.params)
            if candidate in self._left:
                del self._left[candidate]
                self._asked[candidate] = trial
                found.append(candidate)
            else:
                self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        drawn = self._rng.sample(list(self._left), min(count - len(found), len(self._left)))
        for candidate in drawn:
            del self._left[candidate]
        return found + drawn

    def learn(self, candidates: Sequence[Candidate], outcomes: Sequence[Outcome]) -> None:
        """Tell Optuna what became of them, whoever proposed them."""
        states = self._optuna.trial.TrialState
        for candidate, outcome in zip(candidates, outcomes, strict=True):
            self._left.pop(candidate, None)
            state = states.FAIL if outcome.seconds is None else states.COMPLETE
            trial = self._asked.pop(candidate, None)
            if trial is not None:
                self._study.tell(trial, outcome.seconds, state)
                continue
            places = {name: values.index(candidate.decisions[name]) for name, values in self._open.items()}
            self._study.add_trial(
                self._optuna.trial.create_trial(
                    state=state, value=outcome.seconds, params=places, distributions=self._distributions
                )
            )

    def _candidate(self, places: Mapping[str, int]) -> Candidate:
        drawn = {name: values[places[name]] for name, values in self._open.items()}
        return Candidate({**self._default.decisions, **drawn})


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ImportError(f"tuning kernels for GPUs needs {error.name}: pip install 'attncc[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it logs every trial
    return optuna
