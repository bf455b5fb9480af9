"""Learned initial states: a document that begins with one is the same however it is computed."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from model.small import FORMS, close, config, decoder, same_states, tokens
from retnet.data import Tokenizer
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionState
from retnet.model import Decoder, DecoderConfig, DecoderState, LayerConfig, Sampling, generate
from retnet.model.decoding import Decoding, prefill
from retnet.model.initial_state import (
    add_initial_state,
    initial_tensors,
    is_initial,
    with_initial_state,
)
from retnet.model.sampling import row_generator
from retnet.types import Form

GREEDY = Sampling(temperature=0.0)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no decay": {"decay": "constant:1"},
    "no rotation": {"theta": "none"},
    "no norms": {"score_norm": "none", "head_norm": "none"},
    "layer norm": {"head_norm": "layer"},
}


def tuned(base: Decoder) -> Decoder:
    """The base with random initial states, as large as states become."""
    model = add_initial_state(base).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for S in initial_tensors(model).values():
            S.copy_(torch.randn(S.shape, generator=generator))
    return model


def as_state(model: Decoder, B: int) -> DecoderState:
    """The initial states as the state of B texts that have not begun, for the base."""
    states = initial_tensors(model)
    layers = []
    for index in range(len(model.layers)):
        S = states[f"layers.{index}.branches.0.initial_S"]
        layers.append((RetentionState(S.expand(B, *S.shape)), None))
    return DecoderState(torch.zeros(B, dtype=torch.int64), tuple(layers))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_the_base_that_is_given_the_state(form: Form, variant: str) -> None:
    base = decoder(config(VARIANTS[variant]))
    model, text = tuned(base), tokens(3, 17)
    want, _ = base(text, as_state(model, 3), form="recurrent")
    close(model(text, form=form)[0], want)
    assert (want - base(text)[0]).abs().max() > 1e-2  # the states matter


def test_documents_inside_packed_rows_begin_with_it_too() -> None:
    base = decoder()
    model, text = tuned(base), tokens(2, 23)
    starts = torch.zeros(2, 23, dtype=torch.bool)
    starts[0, [0, 5, 6, 20]] = starts[1, [4, 11]] = True
    for form in FORMS:
        got, _ = model(text, starts=starts, form=form)
        for row in range(2):
            cuts = sorted({0, 23, *starts[row].nonzero()[:, 0].tolist()})
            alone = [
                base(text[row : row + 1, a:b], as_state(model, 1))[0] for a, b in pairwise(cuts)
            ]
            close(got[row : row + 1], torch.cat(alone, 1))


def test_padding_anywhere_changes_nothing() -> None:
    model, text = tuned(decoder()), tokens(2, 12)
    valid = torch.ones(2, 19, dtype=torch.bool)
    valid[:, [0, 1, 5, 9, 10, 17, 18]] = False
    padded = torch.zeros(2, 19, dtype=torch.int64)
    padded[valid] = text.flatten()
    want, after = model(text)
    got, state = model(padded, valid=valid)
    close(got[valid].view_as(want), want)
    same_states(state, after)


@pytest.mark.parametrize("cut", [1, 8, 16])
def test_splitting_anywhere_and_carrying_the_state_changes_nothing(cut: int) -> None:
    model, text = tuned(decoder()), tokens(2, 17)
    starts = torch.zeros(2, 17, dtype=torch.bool)
    starts[1, 12] = True
    want, after = model(text, starts=starts)
    first, state = model(text[:, :cut], starts=starts[:, :cut])
    second, state = model(text[:, cut:], state, starts=starts[:, cut:])
    close(torch.cat([first, second], 1), want)
    same_states(state, after)


def test_a_carried_state_of_rows_that_have_read_nothing_is_a_start() -> None:
    """Runs that carry states from step to step begin with such a state."""
    model, text = tuned(decoder()), tokens(2, 9)
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    _, empty = model(nothing.long(), valid=nothing)
    close(model(text, empty)[0], model(text)[0])


def test_generation_is_that_of_the_base_from_the_state(tiny_model: Decoder) -> None:
    model, tokenizer = tuned(tiny_model), Tokenizer.bytes()
    [[got]] = generate(model, tokenizer, ["ab"], max_tokens=12, sampling=GREEDY)
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode("ab")]])
    logits, state = prefill(tiny_model, ids, as_state(model, 1))
    want = Decoding(tiny_model, logits, state, GREEDY, [row_generator(None, 0)])
    assert got.tokens == tuple(int(next(want)) for _ in got.tokens)
    [[plain]] = generate(tiny_model, tokenizer, ["ab"], max_tokens=12, sampling=GREEDY)
    assert got.tokens != plain.tokens


def test_the_gradient_is_that_of_a_state_given_to_the_base() -> None:
    base = decoder()
    model, text = tuned(base), tokens(3, 11)
    base.requires_grad_(False)
    state = as_state(model, 3)
    weights = torch.randn(3, 11, base.config.vocab_size, dtype=torch.float64)
    want = torch.autograd.grad(
        (base(text, state, form="recurrent")[0] * weights).sum(),
        list(initial_tensors(model).values()),
    )
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.train()
        loss = (model(text)[0] * weights).sum()
        got = torch.autograd.grad(loss, list(initial_tensors(model).values()))
        for a, b in zip(got, want, strict=True):
            close(a, b)


def test_a_new_state_changes_nothing_and_shares_the_weights() -> None:
    for tied in (False, True):
        base = decoder(config(tie_embeddings=tied), torch.float32)
        model, text = add_initial_state(base), tokens(2, 9)
        assert torch.equal(model(text)[0], base(text)[0])
        assert model.embed_tokens.weight.data_ptr() == base.embed_tokens.weight.data_ptr()
        assert (model.lm_head.weight is model.embed_tokens.weight) == tied
        assert not model.training
        assert set(model.state_dict()) - set(base.state_dict()) == set(initial_tensors(model))


def test_states_stay_when_more_are_asked_for() -> None:
    model = tuned(decoder())
    again = add_initial_state(model)
    for name, S in initial_tensors(again).items():
        assert torch.equal(S, initial_tensors(model)[name])
        assert S.shape == (4, 4, 6)
        assert is_initial(name)
    assert not any(is_initial(name) for name in decoder().state_dict())


def test_a_model_in_half_precision_keeps_its_states_in_float32() -> None:
    base = decoder(dtype=torch.float32)
    model = add_initial_state(base.bfloat16())
    assert {S.dtype for S in initial_tensors(model).values()} == {torch.float32}
    assert model(tokens(1, 5))[0].dtype == torch.bfloat16


def test_under_autocast_it_errs_no_more_than_a_state_given_to_the_base() -> None:
    base = decoder()
    model, text = tuned(base), tokens(2, 40)
    exact = base(text, as_state(model, 2))[0]
    model, base = model.float(), base.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, plain = model(text)[0], base(text, as_state(model, 2))[0]

    def error(x: Tensor) -> float:
        return (x.double() - exact).pow(2).mean().sqrt().item()

    assert error(got) <= 2 * error(plain)


def test_a_new_draw_of_weights_clears_the_states() -> None:
    model = tuned(decoder())
    model.reset_parameters()
    assert all(not S.any() for S in initial_tensors(model).values())


def test_a_model_that_remembers_nothing_is_refused() -> None:
    layers = (LayerConfig(channel=GLUConfig(width=8), repeat=3),)
    with pytest.raises(ValueError, match=r"none of the 3 layers has a mixer that can begin"):
        with_initial_state(DecoderConfig(d_model=8, layers=layers, vocab_size=5))
