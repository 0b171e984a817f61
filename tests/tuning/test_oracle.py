"""The judge of candidates: every kind of spec passes with the kernels that are, and single wrong numbers are seen."""

import pytest
import zoo

from attncc.runtime import eager
from attncc.schedules import Problem
from attncc.tuning.oracle import Oracle, _spread
from attncc.tuning.sample import generated, operands_of


@pytest.mark.parametrize("name", sorted(zoo.ATTENTIONS))
def test_any_attention_is_judged_and_pytorch_passes(name: str) -> None:
    case = zoo.case(name, "float32", (2, 2, 21, 37), group=2)
    operands = (case.q, case.k, case.v, list(case.extras), case.scalars, case.integers)
    oracle = Oracle(case.spec, operands)
    outputs = eager.outputs(case.spec, operands)
    oracle.check(outputs)
    oracle.trusted = [t.clone() for t in outputs]
    oracle.check(outputs)
    flat = outputs[0].view(-1)
    place = int(flat.isfinite().nonzero()[-1])
    flat[place] += 0.01 * oracle.scale
    with pytest.raises(ValueError, match="wrong result: out is off by"):
        oracle.check(outputs)
    flat[place] = float("nan")
    with pytest.raises(ValueError, match="wrong result: out is NaN"):
        oracle.check(outputs)


def test_rows_at_both_ends_and_between_are_worked_out() -> None:
    for size, count in ((1, 1), (7, 7), (100, 2), (1000, 30)):
        rows = _spread(size, count)
        assert len(rows) == len(rows.unique()) == count and int(rows.max()) == size - 1
        assert count == 1 or int(rows.min()) == 0


def test_a_call_of_many_rows_is_judged_everywhere_beside_the_default() -> None:
    """2^25 multiply-adds are worked out in float64; an error outside of those rows shows against the default."""
    spec = zoo.case("plain", "float32", (1, 1, 4, 4)).spec
    problem = Problem(1, spec.group * 2, 4096, 4096, 1)
    operands = operands_of(spec, problem, generated(spec, problem))
    oracle = Oracle(spec, operands)
    outputs = eager.outputs(spec, operands)
    oracle.check(outputs)
    oracle.trusted = [t.clone() for t in outputs]
    left_out = next(i for i in range(4096) if i not in set(oracle.only["i"].tolist()))
    outputs[0][0, 0, left_out, 0] += 1.0
    with pytest.raises(ValueError, match="off by"):
        oracle.check(outputs)
