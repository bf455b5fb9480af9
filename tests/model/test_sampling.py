import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from retnet.model.sampling import PLAIN, Sampling, adjust, row_generator, sample

# Halves tie often, and ties are where truncations disagree.
LOGITS = st.lists(
    st.integers(-8, 8).map(lambda n: n / 2) | st.just(-math.inf), min_size=1, max_size=9
).filter(lambda row: max(row) > -math.inf)


def slow_adjust(row: list[float], sampling: Sampling, counts: list[int]) -> np.ndarray:
    """One row, one token at a time, in float64: the definition of `adjust`."""
    scores = np.array(row, dtype=np.float64)
    for token, count in enumerate(counts):
        if count:
            up = scores[token] > 0
            factor = sampling.repetition_penalty
            scores[token] = scores[token] / factor if up else scores[token] * factor
            scores[token] -= sampling.presence_penalty
    scores /= sampling.temperature
    by_likelihood = sorted(range(len(row)), key=lambda token: (-scores[token], token))
    kept = by_likelihood[: sampling.top_k or None]
    mass = np.exp(scores[kept] - scores[kept[0]])
    probs = mass / mass.sum()
    nucleus, total = [], 0.0
    for token, prob in zip(kept, probs, strict=True):
        if sampling.top_p < 1:
            assume(abs(total - sampling.top_p) > 1e-5)  # else rounding decides, and may
            if total >= sampling.top_p:
                break
        nucleus.append(token)
        total += prob
    best = scores[nucleus[0]]
    for token in list(nucleus):
        if sampling.min_p > 0:
            distance = scores[token] - best - math.log(sampling.min_p)
            assume(sampling.min_p == 1 or abs(distance) > 1e-5)
            if distance < 0:
                nucleus.remove(token)
    out = np.full(len(row), -np.inf)
    out[nucleus] = scores[nucleus]
    return out


@given(
    row=LOGITS,
    data=st.data(),
    temperature=st.sampled_from([0.25, 1.0, 3.0]),
    top_k=st.integers(0, 11),
    top_p=st.sampled_from([0.05, 0.4, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    penalties=st.sampled_from([(1.0, 0.0), (1.3, 0.0), (0.8, 0.5), (1.0, -1.0)]),
)
def test_adjust_equals_its_slow_definition(row, data, temperature, top_k, top_p, min_p, penalties):
    counts = data.draw(st.lists(st.integers(0, 2), min_size=len(row), max_size=len(row)))
    sampling = Sampling(
        repetition_penalty=penalties[0],
        presence_penalty=penalties[1],
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
    )
    want = torch.tensor(slow_adjust(row, sampling, counts))
    got = adjust(torch.tensor([row]), sampling, torch.tensor([counts]))[0]
    assert torch.equal(got == -math.inf, want == -math.inf)
    torch.testing.assert_close(got.double().softmax(-1), want.softmax(-1), rtol=0, atol=1e-6)


def test_penalties_are_those_computed_by_hand():
    sampling = Sampling(repetition_penalty=2.0, presence_penalty=0.5, temperature=0.0)
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0]])
    counts = torch.tensor([[1, 2, 0, 0]])
    assert adjust(logits, sampling, counts).tolist() == [[0.5, -4.5, 1.0, 0.0]]
    often = Sampling(frequency_penalty=0.25, temperature=0.0)
    assert adjust(logits, often, counts).tolist() == [[1.75, -2.5, 1.0, 0.0]]


def test_truncations_are_those_computed_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()

    def kept(**settings: Any) -> list[int]:
        return adjust(logits, Sampling(**settings))[0].isfinite().nonzero().flatten().tolist()

    assert kept(top_k=2) == [0, 1]
    assert kept(top_k=3) == [0, 1, 2], "of equals the lowest id stays"
    assert kept(top_k=99) == [0, 1, 2, 3]
    assert kept(top_p=0.49) == [0]
    assert kept(top_p=0.51) == [0, 1]
    assert kept(top_p=0.8) == [0, 1, 2]
    assert kept(min_p=0.3) == [0, 1]
    assert kept(min_p=1.0) == [0]
    assert kept(top_k=2, top_p=0.6) == [0], "top-p sees what top-k left, renormalised: 2/3, 1/3"
    assert kept(temperature=3.0, top_p=0.51) == [0, 1], "temperature comes before"
    assert kept(temperature=0.5, top_p=0.7) == [0], "squared: 16/22 of the mass is the first's"


def test_truncations_prefer_the_lowest_ids_of_many_equals():
    for sampling in (Sampling(top_k=16), Sampling(top_p=1 / 64)):  # sums exact in float32
        scores = adjust(torch.zeros(1, 1024), sampling)
        assert scores[0].isfinite().nonzero().flatten().tolist() == list(range(16))


@pytest.mark.parametrize("draw", [0.0, 1 - 2.0**-53])
def test_sample_never_takes_a_forbidden_token_even_at_the_ends(monkeypatch, draw):
    logits = 3 * torch.randn(64, 999)
    logits[:, [0, 1, -2, -1]] = -math.inf
    extreme = torch.tensor([draw], dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: extreme)
    tokens = sample(logits, PLAIN, [row_generator(0, 0)] * 64)
    assert set(tokens.tolist()) == {2 if draw == 0 else 996}


def test_sample_is_greedy_at_temperature_0_and_draws_nothing():
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert sample(logits, Sampling(temperature=0.0), []).tolist() == [1, 0]
    one = [row_generator(seed, 0) for seed in range(2)]
    assert sample(logits, Sampling(top_k=1), one).tolist() == [1, 0]


def test_rows_with_settings_of_their_own_are_as_if_alone_to_the_last_bit():
    settings = [
        PLAIN,
        Sampling(temperature=0.0, repetition_penalty=1.5),
        Sampling(temperature=0.3, top_k=5),
        Sampling(top_p=0.7, frequency_penalty=0.4),
        Sampling(min_p=0.2, presence_penalty=-0.5),
        Sampling(temperature=2.0, top_k=7, top_p=0.9, min_p=0.01, repetition_penalty=0.8),
    ]
    logits, counts = torch.randn(6, 50), torch.randint(3, (6, 50))
    together = adjust(logits, settings, counts)
    tokens = sample(logits, settings, [row_generator(7, i) for i in range(6)], counts)
    for i, own in enumerate(settings):
        row = slice(i, i + 1)
        assert torch.equal(adjust(logits[row], own, counts[row]), together[row])
        drawn = sample(logits[row], [own], [row_generator(7, i)], counts[row])
        assert drawn.tolist() == tokens[row].tolist()


def test_settings_for_another_number_of_rows_are_refused():
    with pytest.raises(ValueError, match="2 settings cannot serve 3 rows; give one per row"):
        adjust(torch.zeros(3, 4), [PLAIN, PLAIN])


def test_sample_draws_tokens_as_often_as_their_probability_says():
    probs = torch.tensor([0.4, 0.0, 0.3, 0.2, 0.1])
    num = 20_000
    draws = sample(probs.log().expand(num, -1), PLAIN, [row_generator(0, 0)] * num)
    shares = draws.bincount(minlength=5) / num
    assert shares[1] == 0
    assert (shares - probs).abs().max() < 5 * (0.25 / num) ** 0.5


def test_sample_of_a_row_does_not_depend_on_the_rows_beside_it():
    logits = torch.randn(6, 50)
    together = sample(logits, PLAIN, [row_generator(7, i) for i in range(6)])
    for rows in ([3], [5, 0], [2, 2, 4]):
        got = sample(logits[rows], PLAIN, [row_generator(7, i) for i in rows])
        assert got.tolist() == together[rows].tolist()


def test_sample_makes_one_draw_whatever_the_vocabulary_and_settings():
    logits = torch.randn(1, 50)
    padded = torch.cat([logits, torch.full((1, 14), -math.inf)], dim=1)
    for offered, sampling in ((logits, PLAIN), (padded, PLAIN), (logits, Sampling(top_k=3))):
        generator, other = row_generator(1, 0), row_generator(1, 0)
        token = sample(offered, sampling, [generator])
        torch.rand(1, generator=other, dtype=torch.float64)
        assert torch.equal(generator.get_state(), other.get_state())
        if sampling is PLAIN:
            assert token == sample(logits, PLAIN, [row_generator(1, 0)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_adjust_computes_in_float32_whatever_the_dtype(dtype):
    logits = torch.randn(3, 40).to(dtype)
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01)
    got = adjust(logits, sampling)
    assert got.dtype == torch.float32
    assert torch.equal(got, adjust(logits.float(), sampling))


@pytest.mark.parametrize("temperature", [1e-4, 1e-30, 5e-324])
def test_sample_at_a_tiny_temperature_is_greedy_and_not_nan(temperature):
    logits = torch.tensor([[10.0, 90.0, -math.inf, 89.0]])
    sampling = Sampling(temperature=temperature, top_p=0.9, min_p=0.1)
    assert sample(logits, sampling, [row_generator(0, 0)]).tolist() == [1]


@pytest.mark.parametrize("bad", [-math.inf, math.nan, math.inf])
def test_adjust_refuses_a_row_that_offers_no_token(bad):
    logits = torch.zeros(3, 4)
    logits[1] = bad
    with pytest.raises(ValueError, match=rf"largest logit of row 1 is {bad}; it must be finite"):
        adjust(logits, PLAIN)


def test_adjust_does_not_modify_its_arguments():
    logits, counts = torch.randn(2, 9), torch.ones(2, 9, dtype=torch.int32)
    before = logits.clone()
    adjust(logits, Sampling(repetition_penalty=2.0, temperature=0.5, top_k=2, min_p=0.5), counts)
    assert torch.equal(logits, before)


def test_sample_refuses_another_number_of_generators():
    with pytest.raises(ValueError, match="1 generators cannot serve 2 rows; give one per row"):
        sample(torch.zeros(2, 3), PLAIN, [row_generator(0, 0)])


def test_row_generator_depends_on_seed_and_index_alone():
    def first(seed: int | None, index: int) -> float:
        return torch.rand(1, generator=row_generator(seed, index)).item()

    assert first(3, 1) == first(3, 1)
    assert len({first(seed, index) for seed in (-1, 0, 2**80) for index in range(3)}) == 9
    assert first(None, 0) != first(None, 0)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", -0.1, r"temperature \(-0.1\) must be 0 or more and finite"),
        ("temperature", math.inf, r"temperature \(inf\) must be 0 or more and finite"),
        ("top_k", -1, r"top_k \(-1\) must be 0 or more; 0 keeps every token"),
        ("top_p", 0.0, r"top_p \(0.0\) must be above 0 and at most 1"),
        ("top_p", 1.5, r"top_p \(1.5\) must be above 0 and at most 1"),
        ("min_p", 1.5, r"min_p \(1.5\) must be from 0 to 1; 0 keeps every token"),
        ("repetition_penalty", 0.0, r"repetition_penalty \(0.0\) must be positive and finite"),
        ("presence_penalty", math.nan, r"presence_penalty \(nan\) must be finite; 0 turns it off"),
        (
            "frequency_penalty",
            math.inf,
            r"frequency_penalty \(inf\) must be finite; 0 turns it off",
        ),
        ("temperature", math.nan, r"temperature \(nan\)"),
    ],
)
def test_sampling_refuses_settings_outside_their_range(setting, value, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**{setting: value})
