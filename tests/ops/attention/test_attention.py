"""One judge for every case: the definition in float64, outputs, states and gradients alike."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ops.attention.reference import Case, by_definition, random_case
from retnet.ops import Layout, SequenceRanks, attention
from retnet.ops.attention import AttentionState
from retnet.ops.attention import blocks as in_blocks
from retnet.ops.sequence import Spread
from support import assert_within_budget


def mask(*rows: str) -> Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


PADDED = mask("..xxxxx", "xxxx...", "x.xx.x.", "xxxxxxx", ".......")
STARTS = mask("...x...", "x......", ".x..x.x", ".......", "x..x...")
CASES: dict[str, dict[str, Any]] = {
    "one token": {"B": 1, "T": 1},
    "some": {"B": 2, "T": 5},
    "grouped": {"B": 2, "T": 5, "H": 6, "H_kv": 2},
    "one key head": {"B": 2, "T": 4, "H": 3, "H_kv": 1, "D_k": 1},
    "one after some": {"B": 2, "T": 1, "H": 4, "H_kv": 2, "position": [6, 6]},
    "some after some": {"B": 2, "T": 5, "H": 4, "H_kv": 2, "position": [6, 6]},
    "rows at different places": {"B": 3, "T": 4, "position": [1, 5, 3]},
    "one token for each of them": {"B": 3, "T": 1, "H": 4, "H_kv": 2, "position": [1, 5, 3]},
    "a row without a past": {"B": 2, "T": 2, "position": [0, 3]},
    "padded": {"B": 5, "T": 7, "valid": PADDED},
    "packed": {"B": 5, "T": 7, "H": 2, "H_kv": 1, "starts": STARTS},
    "padded and packed": {"B": 5, "T": 7, "valid": PADDED, "starts": STARTS},
    "all of it": {
        "B": 5,
        "T": 7,
        "H": 4,
        "H_kv": 2,
        "position": [3, 1, 0, 4, 2],
        "valid": PADDED,
        "starts": STARTS,
    },
    "one padded token": {"B": 2, "T": 1, "position": [2, 3], "valid": mask("x", ".")},
    "one token that begins": {"B": 2, "T": 1, "position": [2, 3], "starts": mask("x", ".")},
}
every_case = pytest.mark.parametrize("name", CASES)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.fixture(params=[2, 512], ids=["blocks of 2", "one block"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_blocks, "QUERY_BLOCK", request.param)


@pytest.mark.usefixtures("blocks")
@every_case
def test_attention_is_its_definition(name: str) -> None:
    case = random_case(**CASES[name])
    o, state = attention(case.q, case.k, case.v, case.state, layout=case.layout())
    want, after = by_definition(case)
    close(o, want)
    slots = max(keys.shape[1] for keys, _ in after)
    assert state.k.shape[2] == state.v.shape[2] == slots
    for b, (keys, values) in enumerate(after):
        for got, kept in ((state.k[b], keys), (state.v[b], values)):
            close(got, F.pad(kept, (0, 0, 0, slots - kept.shape[1])))


@every_case
def test_gradients_are_those_of_the_definition(name: str) -> None:
    case = random_case(**CASES[name])
    inputs = [*case[:3], *(case.state or ())]
    for x in inputs:
        x.requires_grad_()
    o, state = attention(case.q, case.k, case.v, case.state, layout=case.layout())
    want, after = by_definition(case)
    rng = torch.Generator().manual_seed(1)
    on_o = torch.randn(o.shape, generator=rng, dtype=o.dtype)
    on_state = [torch.randn(x.shape, generator=rng, dtype=o.dtype) for x in state]

    def score(o: Tensor, rows: list[tuple[Tensor, Tensor]]) -> Tensor:
        total = (o * on_o).sum()
        for b, row in enumerate(rows):
            for x, weight in zip(row, on_state, strict=True):
                total = total + (x * weight[b, :, : x.shape[1]]).sum()
        return total

    rows = [(state.k[b], state.v[b]) for b in range(len(o))]
    got = torch.autograd.grad(score(o, rows), inputs, allow_unused=True)
    exact = torch.autograd.grad(score(want, after), inputs, allow_unused=True)
    for x, a, b in zip(inputs, got, exact, strict=True):
        close(torch.zeros_like(x) if a is None else a, torch.zeros_like(x) if b is None else b)


def plain(case: Case) -> Tensor:
    """Scores, softmax and values in the dtype of the case, dense and without a state."""
    q, k, v = (x.transpose(1, 2) for x in case[:3])
    T = q.shape[2]
    scores = q @ k.mT * q.shape[-1] ** -0.5
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    return (scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("T", [1, 33, 130])
def test_attention_errs_no_more_than_the_plain_form(dtype: torch.dtype, T: int) -> None:
    case = random_case(2, T, 2, 2, 16).to(dtype)
    exact = plain(case.to(torch.float64))
    assert_within_budget(attention(*case[:3])[0], plain(case), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masks_cost_no_accuracy(dtype: torch.dtype) -> None:
    """Rows at different places with padding, judged by each dtype's own rounding."""
    case = random_case(**{**CASES["all of it"], "D_k": 16}).to(dtype)
    o, state = attention(case.q, case.k, case.v, case.state, layout=case.layout())
    want, _ = by_definition(case.to(torch.float64))
    assert o.dtype == state.k.dtype == state.v.dtype == dtype
    error = (o.double() - want).abs().max().item()
    assert error < 4 * torch.finfo(dtype).eps


def test_a_query_looks_at_all_cached_keys_and_not_only_at_the_first() -> None:
    """`is_causal` aligns its triangle to the top left: wrong as soon as something is cached."""
    q, k, v = random_case(1, 9)[:3]
    whole, _ = attention(q, k, v)
    _, state = attention(q[:, :6], k[:, :6], v[:, :6])
    o, _ = attention(q[:, 6:], k[:, 6:], v[:, 6:], state)
    close(o, whole[:, 6:])


def test_padding_may_hold_anything_finite() -> None:
    case = random_case(5, 7, valid=PADDED)
    wild = case._replace(k=torch.where(PADDED[..., None, None], case.k, 1e30))
    wild = wild._replace(v=torch.where(PADDED[..., None, None], case.v, -1e30))
    o, state = attention(*case[:3], layout=case.layout())
    got, got_state = attention(*wild[:3], layout=wild.layout())
    assert torch.equal(got, o)
    assert all(torch.equal(a, b) for a, b in zip(got_state, state, strict=True))
    assert not o[~PADDED].any()


def test_a_state_has_a_key_and_a_value_for_each_token_of_the_longest_document_alone() -> None:
    case = random_case(5, 7, 6, 2, 4, valid=PADDED, starts=STARTS)
    layout = case.layout()
    _, state = attention(*case[:3], layout=layout)
    longest = int(layout.next_position.max())
    assert state.k.shape == state.v.shape == (5, 2, longest, 4)


def test_masks_are_made_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_case(**CASES["all of it"])
    layout = case.layout()
    want = attention(case.q, case.k, case.v, case.state, layout=layout)
    monkeypatch.setattr(in_blocks, "_seen", lambda *_: pytest.fail("made a second time"))
    got = attention(case.q, case.k, case.v, case.state, layout=layout)
    assert torch.equal(got[0], want[0])


def test_autocast_leaves_the_dtype_that_the_caller_chose() -> None:
    case = random_case(1, 4).to(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o, state = attention(*case[:3])
    assert o.dtype == state.k.dtype == torch.float32
    assert torch.equal(o, attention(*case[:3])[0])


def test_values_may_have_another_width_than_keys() -> None:
    case = random_case(1, 4, 2, 1, 4)
    v = torch.cat([case.v, 2 * case.v], -1)
    o, state = attention(case.q, case.k, v)
    want, _ = attention(*case[:3])
    close(o, torch.cat([want, 2 * want], -1))
    assert state.v.shape[-1] == 8


def test_what_does_not_fit_is_refused() -> None:
    q, k = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 2, 8)
    three = torch.zeros(2, 3, 3, 8)
    wide = torch.zeros(2, 2, 5, 8, dtype=torch.float64)
    other = torch.zeros(2, 4, 5, 8)
    cases: list[tuple[str, tuple[Any, ...]]] = [
        (r"q has shape \(2, 0, 4, 8\): T is 0; pass at least one", (q[:, :0], k[:, :0], k[:, :0])),
        ("q has 4 heads and k 3; the number of queries' heads must be a mult", (q, three, three)),
        ("q, k, v have dtypes torch.float32, torch.float64", (q, k.double(), k)),
        ("state.k has dtype torch.float64 and q", (q, k, k, AttentionState(wide, wide))),
        (
            r"state.k has shape \(2, 4, 5, 8\); it must be \(B, H_kv, slots, D\) = \(2, 2, slots,",
            (q, k, k, AttentionState(other, other)),
        ),
    ]
    for match, args in cases:
        with pytest.raises(ValueError, match=match):
            attention(*args)


def test_rows_spread_over_ranks_are_refused() -> None:
    counts = torch.tensor([[3], [3]])
    spread = Spread(SequenceRanks(None, 0, 2), counts, counts > 9)
    q, k, v = random_case(1, 3)[:3]
    with pytest.raises(ValueError, match=r"run them whole \(train.sequence_ranks = 1\)"):
        attention(q, k, v, layout=replace(Layout.of(1, 3), spread=spread))
