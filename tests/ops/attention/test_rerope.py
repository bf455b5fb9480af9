"""Keys that turn when they are read: xPos, ReRoPE and frequencies that change with the length."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from golden_files import golden
from ops.attention.reference import random_case
from ops.attention.test_attention import close
from retnet.ops import Layout, attention
from retnet.ops.attention import Rule
from retnet.ops.attention.blocks import Block
from retnet.ops.attention.rerope import Reread, rerope_scores, turned_for_one
from retnet.ops.attention.rule import products
from retnet.ops.attention.xpos import xpos_scales
from retnet.ops.rotation import PairLayout, frequencies, rotate, turning_tables

D = 8


def block(q_place: list[int], k_place: list[int]) -> Block:
    q, k = torch.tensor([q_place]), torch.tensor([k_place])
    mask = (k[:, None] <= q[..., None])[:, None]
    return Block(None, 0, len(q_place), (slice(0, len(k_place)),), mask, q, k)


def text(T: int, width: int = D, seed: int = 0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 2, T, width, generator=rng, dtype=torch.float64)
    return q, k  # B H T D


def explicit(q: Tensor, k: Tensor, distance: Tensor, pairs: PairLayout) -> Tensor:
    """Products after turning each key back by a distance of its own from the query."""
    freq = frequencies("rope", q.shape[-1])
    rows = []
    for i in range(q.shape[2]):
        cos, sin = turning_tables(-distance[None, i].double(), freq, q.dtype)
        turned = rotate(k.transpose(1, 2), cos, sin, pairs).transpose(1, 2)
        rows.append(products(q[:, :, i : i + 1], turned))
    return torch.cat(rows, 2)


def xpos_products(q: Tensor, k: Tensor, here: Block, scale_base: float = 512.0) -> Tensor:
    of_q, of_k = xpos_scales(here, q.shape[-1], "interleaved", q.dtype, scale_base)
    cos, sin = turning_tables(here.q_place, frequencies("rope", q.shape[-1]), q.dtype)
    k_cos, k_sin = turning_tables(here.k_place, frequencies("rope", q.shape[-1]), q.dtype)
    q = rotate(q.transpose(1, 2), cos, sin, "interleaved").transpose(1, 2)
    k = rotate(k.transpose(1, 2), k_cos, k_sin, "interleaved").transpose(1, 2)
    return products(q * of_q, k * of_k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_xpos_scores_are_those_of_the_official_code(dtype: torch.dtype) -> None:
    file = golden("xpos")
    q, k = (file.arrays[f"in.{name}"].to(dtype)[:, None] for name in ("q", "k"))
    T = q.shape[2]
    places = list(range(T))
    scores = xpos_products(q, k, block(places, places))[:, 0]
    file.assert_agrees(scores, "scores")


@given(origin=st.integers(0, 100_000))
@settings(max_examples=10, deadline=None)
def test_xpos_depends_on_distances_alone(origin: int) -> None:
    q, k = text(6)
    places = list(range(6))
    here = xpos_products(q, k, block(places, places))
    there = [p + origin for p in places]
    lower = torch.ones(6, 6, dtype=torch.bool).tril()
    moved = xpos_products(q, k, block(there, there))
    torch.testing.assert_close(moved[..., lower], here[..., lower], rtol=1e-8, atol=1e-8)


def test_xpos_without_fading_is_rope_and_fades_by_the_slow_pairs() -> None:
    q, k = text(6)
    places = list(range(6))
    distance = torch.arange(6)[:, None] - torch.arange(6)
    plain = explicit(q, k, distance, "interleaved")
    close(xpos_products(q, k, block(places, places), scale_base=1e15), plain)
    one = torch.zeros(1, 1, 1, D, dtype=torch.float64)
    one[..., 0] = 1  # the first pair, whose zeta is 0.4 / 1.4
    far = block([512], [0])
    got = xpos_products(one, one, far)
    assert got.item() == pytest.approx(0.4 / 1.4 * math.cos(512), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_xpos_overflows_nowhere(dtype: torch.dtype) -> None:
    """With a common origin at 0 a key's scale overflows at 36,000 in float32, 4,500 in float16."""
    assert torch.finfo(torch.float32).max / 10 < (1.4 / 0.4) ** (40_000 / 512)
    queries = list(range(40_000, 40_512))
    here = block(queries, [*range(0, 40_000, 1000), *queries])
    of_q, of_k = xpos_scales(here, 64, "half", dtype)
    for scale in (of_q, of_k):
        assert scale.isfinite().all()
        assert scale.max() < 4
    layout = Layout.of(1, 3, position=torch.tensor([40_000]))
    case = random_case(1, 3, 1, 1, 64, position=[40_000]).to(dtype)

    def scaled(q: Tensor, k: Tensor, here: Block) -> tuple[Tensor, Tensor]:
        of_q, of_k = xpos_scales(here, 64, "half", q.dtype)
        return q * of_q, k * of_k

    o, _ = attention(*case[:4], layout=layout, rule=Rule(turn=scaled))
    exact = case.to(torch.float64)
    want, _ = attention(*exact[:4], layout=layout, rule=Rule(turn=scaled))
    assert o.isfinite().all()
    assert (o.double() - want).abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
@pytest.mark.parametrize("slowdown", [None, 1.0, 2.5])
def test_rerope_is_the_explicit_form_of_distances(
    pairs: PairLayout, slowdown: float | None
) -> None:
    T, w = 11, 4
    q, k = text(T)
    how = Reread(frequencies("rope", D), pairs, w, slowdown)
    distance = (torch.arange(T)[:, None] - torch.arange(T)).double()
    beyond = torch.zeros_like(distance) if slowdown is None else (distance - w) / slowdown
    shrunk = torch.where(distance < w, distance, w + beyond)
    places = list(range(T))
    scores = rerope_scores(how, q, k, block(places, places))
    close(scores, explicit(q, k, shrunk, pairs))
    for i in range(T):
        last = block([i], places[: i + 1])
        one, turned = turned_for_one(how, q[:, :, i : i + 1], k[:, :, : i + 1], last)
        close(products(one, turned), scores[:, :, i : i + 1, : i + 1])


@given(w=st.integers(1, 30), slowdown=st.sampled_from([None, 2.0, 1e9]))
@settings(max_examples=10, deadline=None)
def test_rerope_is_rope_within_its_window_or_without_slowing_down(
    w: int, slowdown: float | None
) -> None:
    T = 9
    q, k = text(T)
    places = block(list(range(T)), list(range(T)))
    freq = frequencies("rope", D)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    plain = explicit(q, k, distance, "half")
    scores = rerope_scores(Reread(freq, "half", w, slowdown), q, k, places)
    near = distance < w
    close(scores[..., near], plain[..., near])
    close(rerope_scores(Reread(freq, "half", w, 1.0), q, k, places), plain)
    limit = rerope_scores(Reread(freq, "half", w), q, k, places)
    torch.testing.assert_close(
        rerope_scores(Reread(freq, "half", w, 1e9), q, k, places), limit, rtol=1e-6, atol=1e-6
    )
