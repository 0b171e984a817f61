"""AttentionSpec: what it rejects, and that its name is stable and complete."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attncc import expr as ex
from attncc.spec import AttentionSpec, Extra

LEAVES = st.one_of(
    st.just(ex.Score()),
    st.sampled_from(ex.AXES).map(lambda a: ex.op("cast", ex.Index(a), dtype="float32")),
    st.floats(width=32, allow_nan=False).map(lambda v: ex.Const(v, "float32")),
    st.just(ex.Scalar("s0", "float32")),
    st.just(ex.Load("t0", (ex.Index("h"), ex.Index("j")), "float32")),
)
SCORE_MODS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["add", "mul", "max"]), inner, inner).map(lambda t: ex.op(*t)),
        st.tuples(st.sampled_from(["tanh", "neg", "exp"]), inner).map(lambda t: ex.op(*t)),
    ),
    max_leaves=12,
)


@given(SCORE_MODS)
def test_json_round_trip_gives_an_equal_spec_of_the_same_name(score_mod: ex.Expr) -> None:
    spec = AttentionSpec("float32", 64, 32, score_mod=score_mod, scalars=("s0",), extras=(Extra("t0", "float32", 2),))
    again = AttentionSpec.from_json(spec.json)
    assert again == spec
    assert again.name == spec.name


def test_the_name_changes_with_every_field() -> None:
    base = AttentionSpec("float32", 64, 64)
    others = [
        AttentionSpec("bfloat16", 64, 64),
        AttentionSpec("float32", 32, 64),
        AttentionSpec("float32", 64, 32),
        AttentionSpec("float32", 64, 64, group=2),
        AttentionSpec("float32", 64, 64, score_mod=ex.op("tanh", ex.Score())),
        AttentionSpec("float32", 64, 64, mask=ex.op("le", ex.Index("j"), ex.Index("i"))),
        AttentionSpec("float32", 64, 64, fill=-1e9),
        AttentionSpec("float32", 64, 64, empty_row="nan"),
        AttentionSpec("float32", 64, 64, extras=(Extra("t0", "bool", 1),)),
        AttentionSpec("float32", 64, 64, normalizer="none"),
        AttentionSpec("float32", 64, 64, sink=ex.Const(0.0, "float32")),
        AttentionSpec("float32", 64, 64, outputs=("out", "max")),
        AttentionSpec("float32", 64, 64, outputs=("out", "weights")),
    ]
    assert len({s.name for s in [base, *others]}) == len(others) + 1


def test_defaults_are_left_out_of_the_canonical_text() -> None:
    assert AttentionSpec("float32", 64, 64).json == '{"dtype":"float32","head_dim":64,"value_dim":64,"version":2}'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"head_dim": 0}, "at least 1"),
        ({"normalizer": "argmax"}, "normalizer 'argmax'"),
        ({"fill": 1.0}, "fill"),
        ({"query_dim": 8}, "bilinear"),
        ({"mask": ex.op("lt", ex.Score(), ex.Const(0.0, "float32"))}, "the mask depends on the score"),
        ({"mask": ex.Index("j")}, "mask is boolean"),
        ({"normalizer": "none", "mask": ex.op("le", ex.Index("j"), ex.Index("i"))}, "fill is 0"),
        ({"normalizer": "none", "sink": ex.Const(0.0, "float32")}, "sink is part of a softmax"),
        ({"normalizer": "none", "outputs": ("out", "sum")}, "outputs of a softmax"),
        ({"sink": ex.op("cast", ex.Index("j"), dtype="float32")}, "sink uses the axis 'j'"),
        ({"sink": ex.Score()}, "the sink depends on the score"),
        ({"outputs": ("max",)}, "outputs include out"),
        ({"outputs": ("sum", "out")}, "outputs are some of"),
        ({"element": ex.Load("t0", (ex.Index("j"),), "float32"), "extras": (Extra("t0", "float32", 1),)}, "axis 'j'"),
        ({"score_mod": ex.Scalar("s0", "float32")}, "scalar 's0'"),
        ({"score_mod": ex.Load("t0", (), "float32")}, "no extra"),
        ({"score_mod": ex.Arg(0, "float32")}, "contains"),
        ({"extras": (Extra("bias", "float32", 4),)}, "extras are named"),
    ],
)
def test_what_is_no_attention_is_rejected(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionSpec(**{"dtype": "float32", "head_dim": 64, "value_dim": 64, **arguments})


@pytest.mark.parametrize("text", ["[]", '{"version":0}', '{"version":2,"dtype":"float32"}', '{"version":2,"shape":3}'])
def test_foreign_text_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not an attention spec"):
        AttentionSpec.from_json(text)
