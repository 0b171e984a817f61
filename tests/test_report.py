"""The report: what a person reads, and what a program reads."""

import json

from attncc.report import Report, Site
from attncc.spec import AttentionSpec

SIZES = {"B": 1, "H": 2, "Sq": "s0", "Skv": "s0"}
FUSED = Site(True, "model.py:41", "out = p @ v", spec=AttentionSpec("float32", 64, 64), sizes=SIZES,
             kernel="cpu.prefill.fp32", regime="prefill")  # fmt: skip
REFUSED = Site(False, "model.py:77", "p = s.softmax(-2)", reason="softmax runs over the queries, not the keys")


def test_the_text_names_place_meaning_kernel_and_reason() -> None:
    text = str(Report((FUSED, REFUSED), graphs=1, compile_seconds=0.25))
    for part in ("2 found, 1 fused", "1 graph,", "model.py:41", "out = p @ v", "softmax attention float32 D=64 E=64",
                 "cpu.prefill.fp32", "Sq=s0", "not fused: softmax runs over the queries", "0.25 s"):  # fmt: skip
        assert part in text


def test_sites_that_read_the_same_share_a_row() -> None:
    text = str(Report((FUSED,) * 12, graphs=2))
    assert "model.py:41 × 12" in text
    assert text.count("cpu.prefill.fp32") == 1


def test_a_model_without_attention_says_so() -> None:
    assert "no softmax between two contractions" in str(Report(()))


def test_json_holds_every_site() -> None:
    data = json.loads(Report((FUSED, REFUSED), graphs=1).to_json())
    assert (data["found"], data["fused"]) == (2, 1)
    assert data["sites"][0]["spec"] == {"version": 2, "dtype": "float32", "head_dim": 64, "value_dim": 64}
    assert data["sites"][1] == data["sites"][1] | {"fused": False, "reason": REFUSED.reason, "spec": None}
