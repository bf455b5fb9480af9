import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate.heads import HeadMemory, score_heads
from retnet.mixers import RetentionConfig
from retnet.model import Decoder, preset, rival

BASE = preset("small-1m", vocab_size=257)
ONE = replace(BASE, layers=(replace(BASE.layers[0], repeat=1),))
TEXT = "".join(chr(97 + (7 * i * i + i // 3) % 26) for i in range(400))


def stream() -> TokenStream:
    return TokenStream.from_texts([TEXT], Tokenizer.bytes())


def test_a_heads_influence_fades_as_its_decay_says() -> None:
    config = rival(ONE, "retention", num_heads=2, decay="constant:0.5")
    slow = rival(ONE, "retention", num_heads=2, decay="constant:1")
    fast = score_heads(Decoder(config).eval(), stream(), before=40, after=32)
    assert [(m.layer, m.branch, m.head) for m in fast] == [(0, 0, 0), (0, 0, 1)]
    for memory in fast:
        assert memory.decay == pytest.approx(0.5)
        assert memory.decay_tokens == pytest.approx(2)
        assert len(memory.influence) == 6
        assert memory.reach is not None
        assert memory.reach <= 8
    for memory in score_heads(Decoder(slow).eval(), stream(), before=40, after=32):
        assert memory.decay_tokens == math.inf
        assert memory.influence[-1] > 100 * fast[0].influence[-1]


@pytest.mark.parametrize("name", ["shifted_retention", "mean_retention"])
def test_what_a_token_shift_keeps_is_of_no_head(name: str) -> None:
    half: dict[str, Any] = {"num_heads": 2, "decay": "constant:0.5"}
    if name == "shifted_retention":
        half = {"retention": RetentionConfig(**half)}
    model = Decoder(rival(ONE, name, **half)).eval()
    found = score_heads(model, stream(), before=40, after=32)
    assert [(m.layer, m.branch, m.head) for m in found] == [(0, 0, 0), (0, 0, 1)]
    for memory in found:
        assert memory.decay == pytest.approx(0.5)
        assert max(memory.influence) > 0
        assert memory.reach is not None
        assert memory.reach <= 16


def test_what_a_head_does_not_tell_has_no_influence() -> None:
    model = Decoder(rival(ONE, "retention", num_heads=2)).eval()
    with torch.no_grad():  # the second head's way out is closed
        width = model.layers[0].branches[0].o_proj.weight.shape[1] // 2  # type: ignore[index]
        model.layers[0].branches[0].o_proj.weight[:, width:] = 0  # type: ignore[index]
    first, second = score_heads(model, stream(), before=20, after=8)
    assert max(first.influence) > 0
    assert max(map(abs, second.influence)) < 1e-7


def test_a_branch_without_heads_of_its_own_is_one() -> None:
    model = Decoder(rival(ONE, "attention", num_heads=2)).eval()
    told: list[tuple[int, int]] = []
    [memory] = score_heads(
        model, stream(), before=20, after=8, progress=lambda *numbers: told.append(numbers)
    )
    assert memory.head is None
    assert memory.decay is memory.decay_tokens is None
    assert told == [(0, 1), (1, 1)]


def test_a_layer_that_remembers_nothing_is_left_out() -> None:
    model = Decoder(ONE).eval()
    assert all(isinstance(branch, nn.Module) for branch in model.layers[0].branches)  # type: ignore[union-attr]
    assert {m.branch for m in score_heads(model, stream(), before=20, after=8)} == {0}
    with pytest.raises(ValueError, match=r"before \(0\) and after \(8\) must be at least 1"):
        score_heads(model, stream(), before=0, after=8)


def test_reach_is_none_where_the_influence_does_not_fade() -> None:
    from retnet.evaluate.heads import _reach

    assert _reach((1.0, 0.5, 0.2, 0.3)) is None
    assert _reach((1.0, 0.5, 0.05, 0.3, 0.01)) == 16
    assert _reach((1.0, 0.05)) == 2
    kept = HeadMemory(layer=0, branch=0, head=0, decay=None, influence=(1.0,), reach=None)
    assert kept.decay_tokens is None
