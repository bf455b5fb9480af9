"""The probe tells outputs apart that differ, and those that cannot be."""

from dataclasses import replace

import torch

from retnet.evaluate.position import PositionScore, probe_positions, score_positions, shaken
from retnet.model import Decoder, DecoderConfig, preset, rival

SMALL = replace(preset("small-1m"), vocab_size=2)


def one_layer(config: DecoderConfig) -> DecoderConfig:
    return replace(config, layers=(replace(config.layers[0], repeat=1),))


def test_outputs_are_counted_once_each() -> None:
    o = torch.tensor([[1.0, 0.0], [1.0, 1e-5], [0.0, 1.0], [1.0, 0.0], [4.0, 0.0]])
    assert score_positions(o) == PositionScore(spread=0.75, told_apart=3, tokens=5)
    assert score_positions(torch.zeros(3, 2)) == PositionScore(spread=0.0, told_apart=1, tokens=3)


def test_noise_reaches_every_weight_and_is_repeatable() -> None:
    before = Decoder(SMALL).double()
    after = [shaken(Decoder(SMALL), seed) for seed in (1, 1, 2)]
    for model in after:
        model.load_state_dict(before.state_dict())
    models = [shaken(model, seed) for model, seed in zip(after, (1, 1, 2), strict=True)]
    for old, a, b, c in zip(*(m.parameters() for m in (before, *models)), strict=True):
        assert (a != old).all()
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_attention_gives_equal_tokens_one_output_until_a_first_one_differs() -> None:
    config = rival(SMALL, "attention")
    for score in probe_positions(config, tokens=9, draws=2):
        assert score.told_apart == 1
        assert score.spread < 1e-12
    for score in probe_positions(config, tokens=9, bos=True, draws=2):
        assert score.told_apart == 9


def test_the_norm_of_retentions_heads_leaves_the_signs_only() -> None:
    def told_apart(**fields: str) -> list[int]:
        config = one_layer(rival(SMALL, "retention", num_heads=2, **fields))
        return [score.told_apart for score in probe_positions(config, tokens=16, draws=4)]

    assert told_apart(theta="none") == [1] * 4
    assert max(told_apart()) <= 2**2
    assert told_apart(head_norm="none") == [16] * 4
