"""A sliding window: the banded mask, whatever it costs, and a state that never grows."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from ops.attention.reference import Case, by_definition, random_case
from ops.attention.test_attention import PADDED, STARTS, close
from retnet.ops import Layout, attention
from retnet.ops.attention import AttentionState, Reach, Rule, WindowState, blocks, window
from retnet.ops.attention.blocks import num_pairs

REACHES = [Reach(1), Reach(3), Reach(2, 2), Reach(3, 1), Reach(9, 2)]
every_reach = pytest.mark.parametrize("reach", REACHES, ids=str)
CASES: dict[str, dict[str, Any]] = {
    "one token": {"B": 1, "T": 1},
    "some": {"B": 2, "T": 7, "H": 4, "H_kv": 2},
    "one after some": {"B": 2, "T": 1, "position": [6, 6]},
    "some after some": {"B": 2, "T": 5, "position": [6, 6]},
    "rows at different places": {"B": 3, "T": 4, "position": [1, 8, 3]},
    "a row without a past": {"B": 2, "T": 2, "position": [0, 3]},
    "padded": {"B": 5, "T": 7, "valid": PADDED},
    "packed": {"B": 5, "T": 7, "starts": STARTS},
    "all of it": {
        "B": 5,
        "T": 7,
        "H": 4,
        "H_kv": 2,
        "position": [3, 1, 0, 4, 2],
        "valid": PADDED,
        "starts": STARTS,
    },
}
every_case = pytest.mark.parametrize("name", CASES)


def kept(keys: Tensor, reach: Reach) -> Tensor:
    """What a window keeps of a row's keys (H, n, D)."""
    assert reach.window is not None
    first, rest = keys[:, : reach.sinks], keys[:, reach.sinks :]
    rest = rest[:, -reach.window :]
    first = F.pad(first, (0, 0, 0, reach.sinks - first.shape[1]))
    return torch.cat([first, F.pad(rest, (0, 0, reach.window - rest.shape[1], 0))], 1)


def with_window(case: Case, reach: Reach) -> WindowState | None:
    """The state of a case as a window keeps it."""
    if case.state is None or case.position is None:
        return None
    rows = [
        [kept(x[b, :, : int(n)], reach) for b, n in enumerate(case.position)] for x in case.state
    ]
    return WindowState(*(torch.stack(x) for x in rows))


@pytest.mark.parametrize("least", [2, 128])
@every_case
@every_reach
def test_a_window_is_its_definition(
    name: str, reach: Reach, least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BLOCK", least)
    case = random_case(**CASES[name])
    o, state = attention(*case[:3], with_window(case, reach), layout=case.layout(), reach=reach)
    want, after = by_definition(case, reach)
    close(o, want)
    for b, (keys, values) in enumerate(after):
        close(state.k[b], kept(keys, reach))
        close(state.v[b], kept(values, reach))


@every_case
def test_where_the_host_looks_at_nothing_a_window_gives_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "NEAR", ())
    case, reach = random_case(**CASES[name]), Reach(5, 1)
    o, _ = attention(*case[:3], with_window(case, reach), layout=case.layout(), reach=reach)
    close(o, by_definition(case, reach)[0])


@every_case
def test_gradients_of_a_window_are_those_of_the_definition(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "LEAST_BLOCK", 2)
    reach = Reach(2, 1)
    case = random_case(**CASES[name])
    inputs = [*case[:3], *(case.state or ())]
    for x in inputs:
        x.requires_grad_()
    o, _ = attention(*case[:3], with_window(case, reach), layout=case.layout(), reach=reach)
    want, _ = by_definition(case, reach)
    on_o = torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype)
    got = torch.autograd.grad(o, inputs, on_o, allow_unused=True)
    exact = torch.autograd.grad(want, inputs, on_o, allow_unused=True)
    for x, a, b in zip(inputs, got, exact, strict=True):
        close(torch.zeros_like(x) if a is None else a, torch.zeros_like(x) if b is None else b)


@given(
    T=st.integers(1, 40),
    window=st.integers(1, 12),
    sinks=st.integers(0, 3),
    cuts=st.lists(st.integers(1, 39), max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_reading_in_parts_is_the_banded_mask(
    T: int, window: int, sinks: int, cuts: list[int]
) -> None:
    case, reach = random_case(1, T, 2, 1, 4), Reach(window, sinks)
    q, k, v = (x.transpose(1, 2) for x in case[:3])
    distance = torch.arange(T)[:, None] - torch.arange(T)
    mask = (distance >= 0) & ((distance < window) | (torch.arange(T) < sinks))
    want = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True).transpose(1, 2)
    edges = sorted({0, T, *(c for c in cuts if c < T)})
    state, parts = None, []
    for start, stop in pairwise(edges):
        layout = Layout.of(1, stop - start, position=torch.tensor([start]))
        q, k, v = (x[:, start:stop] for x in case[:3])
        o, state = attention(q, k, v, state, layout=layout, reach=reach)
        assert state.k.shape[2] == window + sinks
        parts.append(o)
    close(torch.cat(parts, 1), want)


@every_reach
def test_a_window_as_long_as_the_text_is_full_attention(reach: Reach) -> None:
    case = random_case(2, 6)
    o, _ = attention(*case[:3], reach=reach._replace(window=6))
    close(o, attention(*case[:3])[0])


def test_the_work_of_a_window_grows_with_the_text_and_not_with_its_square() -> None:
    reach = Reach(64, 4)
    assert num_pairs(32768, reach) / num_pairs(16384, reach) < 2.01
    assert num_pairs(16384, reach) < 200 * 16384
    assert num_pairs(100, Reach()) == 100**2
    layout = Layout.of(1, 1000)
    past = blocks.Keys(layout.positions[:, :0], None, None, None, 0)
    pairs = [
        b.mask.shape[-1] * b.mask.shape[-2] for b in blocks.query_blocks(layout, past, 1000, reach)
    ]
    assert sum(pairs) == num_pairs(1000, reach)


def test_a_bias_and_a_factor_go_by_distance_with_a_window_too() -> None:
    case, reach = random_case(**CASES["all of it"]), Reach(3, 1)
    slopes = torch.tensor([0.5, 0.25, 0.1, 2.0], dtype=torch.float64)
    rule = Rule(bias=lambda d: -slopes[:, None, None] * d[:, None])
    state = with_window(case, reach)
    o, _ = attention(*case[:3], state, layout=case.layout(), reach=reach, rule=rule)
    want, _ = by_definition(case, reach, lambda d, h: -slopes[h] * d)
    close(o, want)
    twice = Rule(bias=rule.bias, factor=lambda d: 2 + 0 * d[:, None])
    o, _ = attention(*case[:3], state, layout=case.layout(), reach=reach, rule=twice)
    close(o, 2 * want)


def test_states_that_do_not_fit_the_window_are_refused() -> None:
    q = torch.zeros(1, 2, 1, 4)
    keys = torch.zeros(1, 1, 5, 4)
    layout = Layout.of(1, 2)
    with pytest.raises(ValueError, match="state is of type AttentionState; with window 4 it must"):
        attention(q, q, q, AttentionState(keys, keys), layout=layout, reach=Reach(4))
    with pytest.raises(ValueError, match="state is of type WindowState; with window None it must"):
        attention(q, q, q, WindowState(keys, keys), layout=layout)
    with pytest.raises(ValueError, match=r"5 slots; with window 4 and sinks 2 it must have 6"):
        attention(q, q, q, WindowState(keys, keys), layout=layout, reach=Reach(4, 2))
    with pytest.raises(ValueError, match=r"does not say how many tokens .* pass a layout"):
        attention(q, q, q, WindowState(keys, keys), reach=Reach(5))
