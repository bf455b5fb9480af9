"""What a decoder does with its state and its files, it does with every mixer in the registry."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from retnet.mixers import MIXERS
from retnet.model import (
    Decoder,
    DecoderConfig,
    concat_rows,
    copy_state,
    pack,
    preset,
    rival,
    select_rows,
)
from retnet.model.decoding import Decoding, prefill
from retnet.model.state import state_tensors, with_tensors
from retnet.model.steps import open_state

every_mixer = pytest.mark.parametrize("name", MIXERS)


def config(name: str) -> DecoderConfig:
    base = preset("small-1m", vocab_size=40)
    (layer,) = rival(base, name).layers
    return replace(base, layers=(replace(layer, repeat=2),))


def decoder(name: str) -> Decoder:
    """In float64, with noise on its weights: some layers begin as nothing."""
    torch.manual_seed(2)
    model = Decoder(config(name)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


@every_mixer
@torch.no_grad()
def test_states_of_rows_are_chosen_joined_and_copied(name: str) -> None:
    """What beams, schedulers and forks need: rows that read texts of different lengths."""
    model = decoder(name)
    texts = [torch.randint(40, (1, n)) for n in (3, 7)]
    alone = [model(text) for text in texts]
    state = concat_rows([state for _, state in alone])
    more = torch.randint(40, (2, 4))
    got, _ = model(more, state)
    for row in (0, 1):
        want, _ = model(torch.cat([texts[row], more[row : row + 1]], 1))
        close(got[row : row + 1], want[:, -4:])
    swapped, _ = model(more[[1, 1, 0]], select_rows(state, [1, 1, 0]))
    close(swapped, got[[1, 1, 0]])
    kept = copy_state(state)
    model(more, state)
    for before, after in zip(
        state_tensors(kept).values(), state_tensors(state).values(), strict=True
    ):
        assert torch.equal(before, after)


@every_mixer
@torch.no_grad()
def test_a_state_goes_through_its_tensors(name: str) -> None:
    """A session is a file of named tensors."""
    model = decoder(name)
    text = torch.randint(40, (2, 9))
    _, state = model(text[:, :5])
    tensors = {key: x.clone() for key, x in state_tensors(state).items()}
    assert not any(x.is_complex() for x in tensors.values())
    want, _ = model(text[:, 5:], state)
    got, _ = model(text[:, 5:], with_tensors(state, tensors))
    assert torch.equal(got, want)


@every_mixer
def test_it_learns(name: str) -> None:
    torch.manual_seed(3)
    model = Decoder(config(name))
    text = torch.randint(40, (4, 17))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        logits, _ = model(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@every_mixer
@torch.no_grad()
def test_decoding_follows_one_pass_with_packed_weights_too(name: str) -> None:
    model = decoder(name).float()
    text = torch.randint(40, (2, 4))
    for one in (model, pack(model, "float32")):
        decoding = Decoding(one, *prefill(one, text))
        tokens = torch.stack([next(decoding) for _ in range(9)], 1)
        want, _ = model(torch.cat([text, tokens[:, :-1]], 1))
        torch.testing.assert_close(decoding.logits, want[:, -1], rtol=1e-3, atol=1e-3)


def test_a_decoder_reads_no_more_than_its_most_limited_layer() -> None:
    assert Decoder(config("retention")).max_tokens is None
    layers = [rival(preset("small-1m"), "hyena", l_max=n).layers[0] for n in (9, 7)]
    model = Decoder(replace(config("retention"), layers=(*config("retention").layers, *layers)))
    assert model.max_tokens == 7


@every_mixer
@torch.no_grad()
def test_a_batch_of_no_rows_is_read_and_stepped(name: str) -> None:
    """What is left when every sequence of a batch has ended."""
    model = decoder(name)
    text = torch.randint(40, (2, 6))
    masks = {"valid": torch.ones(0, 6).bool(), "starts": torch.zeros(0, 6).bool()}
    logits, state = model(text[:0], **masks)
    assert logits.shape == (0, 6, 40)
    _, other = model(text)
    for before in (state, select_rows(other, [])):
        logits, after = model(text[:0, :3], before)
        logits, after = model(text[:0, :1], after)
        assert logits.shape == (0, 1, 40)


@every_mixer
@torch.no_grad()
def test_autocast_steps_on_opened_states(name: str) -> None:
    model = decoder(name).float()
    text = torch.randint(40, (2, 6))
    want, _ = model(text)
    with torch.autocast("cpu", torch.bfloat16):
        opened = open_state(model, model(text[:, :3])[1], 3)
        for t in range(3, 6):
            logits, opened = model(text[:, t : t + 1], opened)
            torch.testing.assert_close(
                logits[:, 0].float(), want[:, t], rtol=0, atol=0.1 * want.abs().max().item()
            )
