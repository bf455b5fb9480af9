"""Steps on a cache that is written in place equal those on states that are not."""

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ops.attention.reference import Case, by_definition, random_case
from retnet.ops import Layout, attention
from retnet.ops.attention import (
    PLAIN,
    AttentionState,
    Reach,
    Rule,
    StaticCache,
    WindowState,
    static,
    window,
)
from retnet.ops.attention.bias import alibi_slopes, linear_bias

ROWS = {"alike": [5, 5, 5], "at different places": [1, 5, 3], "fresh": [0, 0, 0]}
every_batch = pytest.mark.parametrize("position", ROWS.values(), ids=ROWS)
heads = pytest.mark.parametrize("H_kv", [4, 2], ids=["all heads", "grouped"])


@pytest.fixture(params=["near", "far"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that the host may look at, and such as on a GPU, where it must not."""
    if request.param == "far":
        monkeypatch.setattr(static, "NEAR", ())


def steps(
    cache: StaticCache, case: Case, first: int, last: int, rule: Rule = PLAIN
) -> tuple[Tensor, StaticCache]:
    """Outputs of some tokens, and the cache after them."""
    assert case.position is not None
    position, outputs = case.position + first, []
    for t in range(first, last):
        layout = Layout.of(len(position), 1, position=position)
        q, k, v = (x[:, t : t + 1] for x in case[:3])
        o, cache = cache.step(q, k, v, layout, rule)
        outputs.append(o)
        position = layout.next_position
    return torch.cat(outputs, 1), cache


def opened(case: Case, tokens: int) -> StaticCache:
    assert case.state is not None
    return StaticCache.open(case.state, tokens, case.q.shape[2] // case.k.shape[2])


@pytest.mark.usefixtures("device")
@every_batch
@heads
def test_steps_are_those_of_the_definition(position: list[int], H_kv: int) -> None:
    case = random_case(3, 6, 4, H_kv, position=position)
    got, cache = steps(opened(case, 6), case, 0, 6)
    want, after = by_definition(case)
    torch.testing.assert_close(got, want)
    closed = cache.close()
    assert closed.k.shape == closed.v.shape == (3, H_kv, max(position) + 6, 4)
    for b, row in enumerate(after):
        for x, kept in zip(closed, row, strict=True):
            n = kept.shape[1]
            torch.testing.assert_close(x[b, :, :n], kept)
            assert not x[b, :, n:].any()


@pytest.mark.usefixtures("device")
@every_batch
@heads
def test_a_bias_and_a_scale_count_in_steps_too(position: list[int], H_kv: int) -> None:
    case = random_case(3, 6, 4, H_kv, position=position)
    slopes = torch.tensor([0.1, 0.5, 1.0, 2.0], dtype=torch.float64)
    rule = Rule(bias=lambda d: -slopes[:, None, None] * d[:, None], bias_name="slopes")
    got, _ = steps(opened(case, 6), case, 0, 6, rule)
    torch.testing.assert_close(got, by_definition(case, bias=lambda d, h: -slopes[h] * d)[0])
    got, _ = steps(opened(case, 6), case, 0, 6, Rule(scale=1.0))
    wide = case._replace(q=2 * case.q)  # D_k is 4
    torch.testing.assert_close(got, by_definition(wide)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_batch
def test_steps_err_as_little_as_those_on_plain_states(
    dtype: torch.dtype, position: list[int]
) -> None:
    case = random_case(3, 4, 2, 2, 16, position=position).to(dtype)
    got, _ = steps(opened(case, 4), case, 0, 4)
    want, _ = by_definition(case.to(torch.float64))
    assert got.dtype == dtype
    assert (got.double() - want).abs().max() < 4 * torch.finfo(dtype).eps


@pytest.mark.usefixtures("device")
@every_batch
def test_a_state_closed_midway_or_long_after_goes_on_from_its_place(position: list[int]) -> None:
    case = random_case(3, 6, position=position)
    assert case.state is not None
    assert case.position is not None
    given = [x.clone() for x in case.state]
    first, cache = steps(opened(case, 6), case, 0, 2)
    early = cache.close()
    kept = [x.clone() for x in early]
    second, _ = steps(cache, case, 2, 6)
    for x, before in zip((*early, *case.state), (*kept, *given), strict=True):
        assert torch.equal(x, before)
    for x, y in zip(cache.close(), early, strict=True):
        assert torch.equal(x, y)
    layout = Layout.of(3, 4, position=case.position + 2)
    q, k, v = (x[:, 2:] for x in case[:3])
    again, _ = attention(q, k, v, early, layout=layout)
    torch.testing.assert_close(again, second)
    torch.testing.assert_close(torch.cat([first, second], 1), by_definition(case)[0])


@every_batch
def test_a_step_may_be_done_again(position: list[int]) -> None:
    """After an interruption some layers have read a token and others have not."""
    case = random_case(3, 3, position=position)
    _, cache = steps(opened(case, 3), case, 0, 1)
    steps(cache, case._replace(k=-case.k, v=-case.v), 1, 2)  # of which nothing was kept
    got, _ = steps(cache, case, 1, 3)
    torch.testing.assert_close(got, by_definition(case)[0][:, 1:])


@every_batch
@heads
def test_rows_may_be_selected_while_it_is_open(position: list[int], H_kv: int) -> None:
    rows = torch.tensor([2, 0])
    case = random_case(3, 5, 4, H_kv, position=position)
    assert case.position is not None
    _, cache = steps(opened(case, 5), case, 0, 2)
    cache = StaticCache(*(leaf[rows] for leaf in cache))
    q, k, v = (x[rows] for x in case[:3])
    kept = Case(q, k, v, None, case.position[rows])
    got, cache = steps(cache, kept, 2, 5)
    torch.testing.assert_close(got, by_definition(case)[0][rows, 2:])
    longest = int(kept.position.max()) + 5 if kept.position is not None else 0
    assert cache.close().k.shape[2] == longest
    none = StaticCache(*(leaf[:0] for leaf in cache)).close()
    assert none.k.shape == (0, H_kv, 0, 4)


def test_a_cache_that_was_not_used_closes_to_what_it_was_given() -> None:
    state = random_case(2, 1, position=[3, 2]).state
    assert state is not None
    for tokens in (0, 100):
        for x, y in zip(StaticCache.open(state, tokens).close(), state, strict=True):
            assert torch.equal(x, y)


def test_slots_are_not_many_more_than_asked_for() -> None:
    state = random_case(2, 1, position=[3, 2]).state
    assert state is not None
    assert [StaticCache.open(state, n).k.shape[2] for n in (0, 61, 62)] == [64, 64, 128]


def test_far_from_the_host_nothing_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without numbers fail where a number is asked for, as a CUDA graph would."""
    monkeypatch.setattr(static, "NEAR", ())
    with FakeTensorMode():
        state = AttentionState(torch.zeros(2, 2, 5, 4), torch.zeros(2, 2, 5, 4))
        cache = StaticCache.open(state, 3)
        x = torch.zeros(2, 1, 2, 4)
        layout = Layout.of(2, 1, position=torch.full((2,), 5))
        assert cache.step(x, x, x, layout)[0].shape == x.shape
        rule = Rule(bias=lambda d: linear_bias(d, alibi_slopes(2, d.device)))
        assert cache.step(x, x, x, layout, rule)[0].shape == x.shape


def test_far_from_the_host_a_window_is_not_looked_at_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(window, "NEAR", ())
    with FakeTensorMode():
        state = WindowState(torch.zeros(2, 2, 5, 4), torch.zeros(2, 2, 5, 4))
        x = torch.zeros(2, 1, 2, 4)
        layout = Layout.of(2, 1, position=torch.full((2,), 5))
        o, after = attention(x, x, x, state, layout=layout, reach=Reach(4, 1))
        assert o.shape == x.shape
        assert after.k.shape == state.k.shape


def test_what_is_no_step_is_refused() -> None:
    case = random_case(2, 1, position=[64, 63])
    assert case.state is not None
    x, two = case.q, torch.cat([case.q, case.q], 1)
    mask = torch.ones(2, 1, dtype=torch.bool)
    cache = StaticCache.open(case.state, 0)
    at = torch.tensor([63, 62])
    for q, layout in (
        (two, Layout.of(2, 2, position=at)),
        (x, Layout.of(2, 1, position=at, valid=mask)),
        (x, Layout.of(2, 1, position=at, starts=mask)),
        (x.clone().requires_grad_(), Layout.of(2, 1, position=at)),
    ):
        with pytest.raises(ValueError, match="an opened state takes one token of each row, with"):
            cache.step(q, q, q, layout)
    with pytest.raises(ValueError, match="an opened state has 64 slots, too few for token 65"):
        cache.step(x, x, x, Layout.of(2, 1, position=case.position))
    half = x.bfloat16()
    with pytest.raises(ValueError, match=r"opened state has dtype torch.float64 and k torch.bflo"):
        cache.step(half, half, half, Layout.of(2, 1, position=at))
    with pytest.raises(ValueError, match=r"tokens \(-1\) must not be negative"):
        StaticCache.open(case.state, -1)
