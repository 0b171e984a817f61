"""What a person can do about an attention that is not fused: one next step for each kind of reason."""

from __future__ import annotations

STEPS: tuple[tuple[str, str], ...] = (
    ("another axis", "take the softmax over the dimension that the product with V sums over: for weights "
     "[…, queries, keys] that is dim=-1"),
    ("draws random numbers", "call model.eval(), or set the dropout of the attention weights to 0"),
    ("are also used by", "if nothing needs them, do not return them: need_weights=False, output_attentions=False"),
    ("which attncc does not follow", "compute the scores of all queries and keys, […, queries, keys], and mask those "
     "that do not count: attncc.attention(q, k, v, mask_mod=lambda b, h, i, j: (i - j).abs() <= window) skips the keys "
     "outside of a band"),
    ("between the softmax and the product", "do this before the softmax: mask scores with "
     "masked_fill(~visible, -inf) rather than weights with 0"),
    ("changed in place", "make a new tensor instead: x = x.masked_fill(…) for x.masked_fill_(…) or x[…] = …"),
    ("a mode of PyTorch", "let one torch.no_grad() or torch.autocast() region enclose the whole attention"),
    ("not a fixed number", "let that size be the same in every call: torch._dynamo.mark_static(tensor, dim), or "
     "compile without dynamic=True"),
    ("whose size is not fixed", "let that size be the same in every call: torch._dynamo.mark_static(tensor, dim), or "
     "compile without dynamic=True"),
    ("queries, keys and values are", "bring queries, keys and values to one dtype before their product"),
    ("has a dtype that no kernel reads", "give masks as bool or floating-point tensors, positions as integers"),
    ("not over a product of queries and keys", "if the scores are computed in another graph, remove the graph break "
     "between: TORCH_LOGS=graph_breaks shows it"),
    ("the replay", "this is a bug of attncc: please report it with the script of site.write_repro(path)"),
)  # fmt: skip
"""Part of a reason, and what to do."""

OTHERWISE = "site.write_repro(path) writes the site as a script of its own, to try changes on or to report"


def next_step(reason: str) -> str:
    """What to do about a site that was not fused for `reason`."""
    return next((step for part, step in STEPS if part in reason), OTHERWISE)
