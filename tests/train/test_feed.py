"""What is read when states are carried, and that it learns what one long pass would."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retnet.data import TokenStream, carried_batch
from retnet.mixers.attention import AttentionConfig
from retnet.model import Decoder
from retnet.model.scoring import score
from retnet.train.feed import Feed
from retnet.train.loop import accumulate_gradients
from retnet.train.ranks import Ranks

BOS = 19
CPU = Ranks(torch.device("cpu"))


def make_stream(num_tokens=400, document=90):
    tokens = np.random.default_rng(0).integers(0, BOS, num_tokens).astype("<u2")
    starts = np.arange(0, num_tokens, document)
    tokens[starts] = BOS
    return TokenStream(tokens, starts, num_tokens, bos_id=BOS)


def make_model(make_config, **train):
    config = make_config(carry_state=True, **train)
    torch.manual_seed(0)
    model = Decoder(replace(config.model, vocab_size=20)).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return config, model


def run(model, feed, steps, num_targets):
    """Loss of each step; gradients add up."""
    losses = []
    for step in range(steps):
        loss, states = accumulate_gradients(model, feed.parts(step), num_targets, torch.enable_grad)
        feed.carry(states)
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_segments_with_carried_states_have_the_loss_of_one_long_pass(make_config, accumulate):
    """In float64; documents end inside segments and at their borders."""
    config, model = make_model(make_config, seq_len=12, batch_size=4, accumulate=accumulate)
    stream = make_stream()
    losses = run(model, Feed(stream, config, CPU, model), 5, 4 * 12)
    whole = carried_batch(stream, seq_len=60, batch_size=4, seed=0, step=0)
    got = score(model, whole.inputs, whole.targets, starts=whole.starts)
    torch.testing.assert_close(losses.mean(), got.nats / (4 * 60), rtol=1e-12, atol=0)


def test_gradients_are_those_of_a_long_pass_through_which_no_gradient_crosses_a_border(
    make_config,
):
    config, model = make_model(make_config, seq_len=16, batch_size=2)
    stream = make_stream()
    run(model, Feed(stream, config, CPU, model), 2, 2 * 16)
    ours = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    whole = carried_batch(stream, seq_len=32, batch_size=2, seed=0, step=0)
    first = score(model, whole.inputs[:, :16], whole.targets[:, :16], starts=whole.starts[:, :16])
    with torch.no_grad():
        before = score(
            model, whole.inputs[:, :16], whole.targets[:, :16], starts=whole.starts[:, :16]
        ).state
    second = score(
        model,
        whole.inputs[:, 16:],
        whole.targets[:, 16:],
        state=before,
        starts=whole.starts[:, 16:],
    )
    ((first.nats + second.nats) / 32).backward()
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-10, atol=1e-12)


def test_carried_rows_read_every_token_once_and_in_order():
    stream = make_stream(num_tokens=480)
    read = torch.cat(
        [
            carried_batch(stream, seq_len=12, batch_size=4, seed=3, step=step).inputs
            for step in range(10)
        ],
        1,
    )
    tokens = torch.from_numpy(stream.tokens.astype(np.int64))
    ring = torch.cat([tokens, tokens])
    flat = read.flatten()
    offsets = [i for i in range(480) if torch.equal(ring[i : i + 480], flat)]
    assert len(offsets) == 1


@pytest.mark.parametrize(("world_size", "micro_steps"), [(2, 1), (1, 2), (2, 2), (4, 1)])
def test_processes_and_parts_share_the_rows_in_their_order(world_size, micro_steps):
    stream = make_stream()
    place = {"seq_len": 12, "batch_size": 8, "seed": 1, "step": 7}
    whole = carried_batch(stream, **place)
    shares = [
        carried_batch(
            stream,
            **place,
            rank=rank,
            world_size=world_size,
            micro_step=part,
            micro_steps=micro_steps,
        )
        for rank in range(world_size)
        for part in range(micro_steps)
    ]
    for name in ("inputs", "targets", "starts"):
        assert torch.equal(
            torch.cat([getattr(share, name) for share in shares]), getattr(whole, name)
        )


def test_saved_states_go_on_where_they_were(make_config):
    config, model = make_model(make_config, seq_len=12, batch_size=2)
    stream = make_stream()
    feed, other = (Feed(stream, config, CPU, model) for _ in range(2))
    run(model, feed, 3, 24)
    tensors = feed.tensors()
    assert "carried/position" in tensors
    assert "carried/layers.0.0.S" in tensors
    other.restore({name: tensor.clone() for name, tensor in tensors.items()})
    for (_, mine), (_, theirs) in zip(feed.parts(3), other.parts(3), strict=True):
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine.position, theirs.position)
        assert torch.equal(mine.layers[0][0].S, theirs.layers[0][0].S)


def test_without_carrying_every_window_starts_with_nothing(make_config):
    config = make_config()
    model = Decoder(replace(config.model, vocab_size=20))
    feed = Feed(make_stream(), config, CPU, model)
    assert [state for _, state in feed.parts(4)] == [None]
    assert feed.tensors() == {}


def test_states_that_grow_cannot_be_carried(make_config):
    config = make_config(carry_state=True)
    layer = replace(config.model.layers[0], mixer=AttentionConfig(num_heads=2))
    model = Decoder(replace(config.model, layers=(layer,), vocab_size=20))
    with pytest.raises(ValueError, match=r"needs states of one size, and layers.0.0.k grows with"):
        Feed(make_stream(), config, CPU, model)
