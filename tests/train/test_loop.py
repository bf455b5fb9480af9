from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from retnet.data import TokenStream, training_batch
from retnet.model import Decoder
from retnet.train.loop import accumulate_gradients, derived_seed


def gradients(model, stream, parts, batch_size=8, seq_len=12):
    model.zero_grad()
    batches = (
        (
            training_batch(
                stream,
                seq_len=seq_len,
                batch_size=batch_size,
                seed=3,
                step=2,
                micro_step=part,
                micro_steps=parts,
            ),
            None,
        )
        for part in range(parts)
    )
    loss, _ = accumulate_gradients(model, batches, batch_size * seq_len, nullcontext)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("parts", [2, 8])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(make_config, parts):
    config = make_config().model
    torch.manual_seed(0)
    model = Decoder(replace(config, vocab_size=20))
    tokens = np.random.default_rng(0).integers(0, 20, 500).astype("<u2")
    stream = TokenStream(tokens, np.array([0]), 500, bos_id=0)
    loss, whole = gradients(model, stream, 1)
    got_loss, got = gradients(model, stream, parts)
    torch.testing.assert_close(got_loss, loss)
    torch.testing.assert_close(got, whole, rtol=1e-4, atol=1e-6)


def test_derived_seeds_differ_and_fit_torch():
    seeds = {derived_seed(s, f"step {n}") for s in range(20) for n in range(20)}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
