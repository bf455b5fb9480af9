"""Slower rotary frequencies: those of `transformers`, and what the rules say of each other."""

import math
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from golden_files import golden
from retnet.ops.rope_scaling import RoPEScaling, ScalingKind, scaled_frequencies
from retnet.ops.rotation import frequencies, turning_tables

FILE = golden("rope_tables")
BASE = 10_000.0


def of_file(kind: str) -> RoPEScaling:
    said: dict[str, Any] = FILE.config["types"][kind]
    original = said.get("original_max_position_embeddings", said["max_position_embeddings"])
    return RoPEScaling(kind=cast(ScalingKind, kind), factor=said["factor"], original_len=original)


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_tables_are_those_of_transformers(kind: str) -> None:
    scaling, width = of_file(kind), FILE.config["head_dim"]
    freq = scaled_frequencies(scaling, width, BASE, tokens=FILE.config["table_length"])
    FILE.assert_agrees(freq.float(), f"{kind}_inv_freq")
    FILE.assert_agrees(torch.tensor([scaling.table_scale]), f"{kind}_scale")
    rows = torch.tensor([FILE.config["rows"]])
    for name, table in zip(("cos", "sin"), turning_tables(rows, freq, torch.float32), strict=True):
        both = (scaling.table_scale * table[0, :, 0]).repeat(1, 2)
        FILE.assert_agrees(both, f"{kind}_{name}")


def test_unscaled_tables_are_those_of_transformers() -> None:
    FILE.assert_agrees(
        frequencies("rope", FILE.config["head_dim"], BASE).float(), "default_inv_freq"
    )


def slowdown(
    kind: ScalingKind, factor: float = 8.0, width: int = 64, mix: float = 0.625
) -> torch.Tensor:
    scaling = RoPEScaling(kind=kind, factor=factor, original_len=128, mix=mix)
    return frequencies("rope", width) / scaled_frequencies(scaling, width, BASE)


@pytest.mark.parametrize(
    ("kind", "first", "last"),
    [
        ("linear", 8, 8),
        ("ntk", 1, 8),
        ("ntk_old", 1, 7.50),
        ("ntk_fixed", 1.07, 8),
        ("ntk_mixed", 1.27, 8),
    ],
)
def test_each_rule_slows_the_first_and_the_last_pair_as_its_source_says(
    kind: ScalingKind, first: float, last: float
) -> None:
    slow = slowdown(kind)
    assert slow[0].item() == pytest.approx(first, abs=0.005)
    assert slow[-1].item() == pytest.approx(last, abs=0.005)
    assert (slow.diff() > -1e-9).all()


@given(factor=st.floats(1.0, 64.0), width=st.sampled_from([2, 4, 32, 128]))
def test_mixed_scaling_is_fixed_at_one_and_interpolation_at_zero(factor: float, width: int) -> None:
    fixed, linear = (slowdown("ntk_mixed", factor, width, mix) for mix in (1.0, 0.0))
    torch.testing.assert_close(fixed, slowdown("ntk_fixed", factor, width))
    torch.testing.assert_close(linear, slowdown("linear", factor, width))


@pytest.mark.parametrize("kind", ["linear", "ntk", "ntk_old", "ntk_fixed", "ntk_mixed", "dynamic"])
def test_a_factor_of_one_changes_nothing(kind: ScalingKind) -> None:
    torch.testing.assert_close(slowdown(kind, 1.0), torch.ones(32, dtype=torch.float64))


def test_dynamic_scaling_leaves_texts_of_the_training_length_alone_and_then_grows() -> None:
    scaling = RoPEScaling(kind="dynamic", factor=2.0, original_len=100)
    plain = frequencies("rope", 16)
    tables = [scaled_frequencies(scaling, 16, BASE, tokens=n) for n in (10, 100, 200, 300)]
    for table in tables[:2]:
        torch.testing.assert_close(table, plain)
    assert tables[2][-1].item() == pytest.approx(plain[-1].item() / 3)  # 2 * 2 - 1
    assert tables[3][-1].item() == pytest.approx(plain[-1].item() / 5)


@pytest.mark.parametrize(("kind", "turns"), [("yarn", (1.0, 32.0)), ("llama3", (1.0, 4.0))])
def test_pairs_that_turn_often_stay_and_those_that_turn_seldom_are_interpolated(
    kind: ScalingKind, turns: tuple[float, float]
) -> None:
    N, k = 4096, 8.0
    plain = frequencies("rope", 128)
    slow = plain / scaled_frequencies(
        RoPEScaling(kind=kind, factor=k, original_len=N, turns=turns), 128, BASE
    )
    count = N * plain / (2 * math.pi)
    torch.testing.assert_close(
        slow[count > 1.3 * turns[1]], torch.ones_like(slow[count > 1.3 * turns[1]])
    )
    seldom = slow[count < turns[0] / 1.3]
    torch.testing.assert_close(seldom, torch.full_like(seldom, k))
    other = RoPEScaling(kind=kind, factor=k, original_len=N, turns=(2.0, 64.0))
    assert (scaled_frequencies(other, 128, BASE) <= plain / slow + 1e-12).all()


def test_what_makes_no_sense_is_refused() -> None:
    good: dict[str, Any] = {"kind": "yarn", "factor": 2.0, "original_len": 8}
    for bad, match in [
        ({"factor": 0.5}, r"factor \(0.5\) must be at least 1; 1 changes nothing"),
        ({"original_len": 0}, r"original_len \(0\) must be at least 1; give the tokens"),
        ({"turns": (3.0, 2.0)}, r"turns \(\(3.0, 2.0\)\) must be two rising numbers"),
        ({"turns": (1.0, 2.0), "kind": "linear"}, 'and kind "yarn" or "llama3"; leave them out'),
        ({"mix": 1.5}, r"mix \(1.5\) must be in \[0, 1\]; 0.625 is usual"),
    ]:
        with pytest.raises(ValueError, match=match):
            RoPEScaling(**good | bad)
    assert RoPEScaling(**good, score_scale=1.0).table_scale == 1.0
