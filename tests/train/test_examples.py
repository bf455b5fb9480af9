"""Learning from examples that are made on the way."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from retnet.model import Decoder, DecoderConfig, preset
from retnet.train import TrainSection
from retnet.train.examples import Pair, train_on_examples
from retnet.train.loop import Diverged

TRAIN = TrainSection(steps=30, batch_size=8, seq_len=6, learning_rate=1e-2, warmup_steps=3)


def config() -> DecoderConfig:
    small = preset("small-1m", vocab_size=5)
    return replace(small, layers=(replace(small.layers[0], repeat=1),))


def successors() -> Iterator[Pair]:
    """Each target is the token at its own place plus one; the first place asks nothing."""
    generator = torch.Generator().manual_seed(0)
    while True:
        tokens = torch.randint(5, (8, 6), generator=generator)
        targets = (tokens + 1) % 5
        targets[:, 0] = -100
        yield tokens, targets


def test_a_model_learns_what_stands_at_the_same_place() -> None:
    losses = train_on_examples(Decoder(config()), successors(), TRAIN, seed=0)
    assert len(losses) == 30
    assert losses[0] > 1.0
    assert losses[-1] < 0.1 * losses[0]


def test_the_same_seeds_give_the_same_losses_with_dropout_too() -> None:
    first, again, other = (_losses(replace(config(), dropout=0.1), seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_loss_that_is_no_number_ends_it() -> None:
    model = Decoder(config())
    torch.nn.init.constant_(model.embed_tokens.weight, float("nan"))
    with pytest.raises(Diverged, match=r"of step 1 must be finite numbers: training diverged"):
        train_on_examples(model, successors(), TRAIN, seed=0)


def _losses(config: DecoderConfig, seed: int) -> list[float]:
    torch.manual_seed(0)
    return train_on_examples(Decoder(config), successors(), replace(TRAIN, steps=3), seed=seed)
