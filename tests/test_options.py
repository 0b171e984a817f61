"""Options and modes: accepted, mapped, or rejected with the nearest name."""

import pytest

from attncc.options import Options, disabled


@pytest.mark.parametrize(
    ("mode", "inner"),
    [(None, "eager"), ("default", "eager"), ("lite", "eager"), ("reduce-overhead", "eager"),
     ("max-autotune", "inductor"), ("max-autotune-no-cudagraphs", "inductor")],
)  # fmt: skip
def test_every_mode_of_torch_compile_is_mapped(mode: str | None, inner: str) -> None:
    assert Options.parse(mode).inner == inner


def test_an_option_overrides_the_mode() -> None:
    assert Options.parse("max-autotune", {"inner": "eager", "strict": True}) == Options("eager", strict=True)


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("max-autotunes", None, "did you mean 'max-autotune'"),
        (None, {"inne": "eager"}, "did you mean 'inner'"),
        (None, {"inner": "induktor"}, "did you mean 'inductor'"),
        (None, {"strict": "yes"}, "strict='yes' is not a bool"),
        (None, {"qqqq": 1}, "known: inner, strict, verify"),
    ],
)
def test_the_unknown_is_rejected_with_the_nearest_name(mode: str | None, options: dict | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options.parse(mode, options)


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("", False)])
def test_disable_switch(monkeypatch: pytest.MonkeyPatch, value: str, expected: bool) -> None:
    monkeypatch.setenv("ATTNCC_DISABLE", value)
    assert disabled() is expected
