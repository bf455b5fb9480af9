"""The three forms are one function, and any of them continues what another began."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from model.small import FORMS, config, decoder, empty_state, same_states, tokens
from model.small import close as assert_close
from retnet.model import Decoder, DecoderState
from retnet.types import Form, FormChoice
from unchecked import unchecked

forms = pytest.mark.parametrize("form", FORMS)


def logits_and_gradients(model: Decoder, text: Tensor, form: FormChoice) -> list[Tensor]:
    model.zero_grad()
    logits, _ = model(text[:, :-1], form=form)
    F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return [logits.detach(), *(g.clone() for g in grads)]


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
@pytest.mark.parametrize("scale", [1, 8, 64])
@pytest.mark.parametrize("decay", ["pow2", "linspace", "constant:1"])
def test_three_forms_agree_in_logits_and_gradients_at_any_eps_and_weight_scale(
    eps: float, scale: float, decay: str
) -> None:
    """T1: the official code's forms drift apart through the norm's epsilon."""
    retention = {"norm_eps": eps, "decay": decay}
    model = decoder(config(retention, norm_eps=eps), scale=scale)
    text = tokens(2, 80)  # the chunks are of 32: two whole and one short
    want = logits_and_gradients(model, text, "parallel")
    for form in ("recurrent", "chunkwise", "auto"):
        got = logits_and_gradients(model, text, form)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, 1e-9)


@pytest.mark.parametrize("eps", [1e-6, 1e-5])
@pytest.mark.parametrize("scale", [1, 8, 64])
def test_three_forms_agree_to_the_rounding_of_float32(eps: float, scale: float) -> None:
    """T1: the mean error of a form is at most twice the parallel form's."""
    described = config({"norm_eps": eps}, norm_eps=eps)
    text = tokens(8, 80)
    exact = decoder(described, scale=scale)(text, form="recurrent")[0]
    model = decoder(described, torch.float32, scale=scale)
    errors = {form: (model(text, form=form)[0] - exact).abs().mean().item() for form in FORMS}
    assert max(errors.values()) <= 2 * errors["parallel"], errors
    assert errors["parallel"] < 1e-5


def test_three_forms_agree_with_32_heads() -> None:
    """T14: in float32 twelve of the pow2 decays would round to none."""
    model = decoder(config({"num_heads": 32, "key_width": 64, "value_width": 64}))
    text = tokens(2, 40)
    want = logits_and_gradients(model, text, "parallel")
    for form in ("recurrent", "chunkwise"):
        for a, b in zip(logits_and_gradients(model, text, form), want, strict=True):
            assert_close(a, b, 1e-9)


@pytest.mark.parametrize(("first", "second"), list(product(FORMS, FORMS)))
def test_any_form_continues_any_other_at_every_split(first: Form, second: Form) -> None:
    """T4, T5, T7, T18: a prompt in one call, its state, and only the new tokens after it."""
    T = 37
    model, text = decoder(), tokens(2, T)
    with torch.no_grad():
        want, end = model(text, form="recurrent")
        for at in range(1, T):
            before, state = model(text[:, :at], form=first)
            after, state = model(text[:, at:], state, form=second)
            assert_close(torch.cat([before, after], 1), want)
            same_states(state, end)


@forms
def test_token_by_token_equals_one_pass_in_any_form(form: Form) -> None:
    """T5, T6: a single token needs neither the history nor a whole chunk."""
    model, text = decoder(), tokens(2, 21)
    with torch.no_grad():
        want, end = model(text, form="parallel")
        state: DecoderState | None = None
        parts = []
        for n in range(21):
            logits, state = model(text[:, n : n + 1], state, form=form)
            parts.append(logits)
    assert state is not None
    assert_close(torch.cat(parts, 1), want)
    same_states(state, end)


@forms
def test_gradients_flow_through_a_state_that_was_handed_over(form: Form) -> None:
    model, text = decoder(), tokens(2, 20)
    want = logits_and_gradients(model, text, form)[1:]
    model.zero_grad()
    first, state = model(text[:, :7], form=form)
    second, _ = model(text[:, 7:-1], state, form=form)
    logits = torch.cat([first, second], 1)
    F.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    for got, grad in zip(grads, want, strict=True):
        assert_close(got, grad)


@forms
@pytest.mark.parametrize("decay", ["pow2", "constant:1"])
def test_a_token_changes_no_logits_before_it(form: Form, decay: str) -> None:
    """T13: also where nothing decays and 1^inf = 1 could leak the future."""
    model, text = decoder(config({"decay": decay})), tokens(1, 12)
    with torch.no_grad():
        want, _ = model(text, form=form)
        for t in range(12):
            changed = text.clone()
            changed[:, t:] = (changed[:, t:] + 1) % model.config.vocab_size
            assert_close(model(changed, form=form)[0][:, :t], want[:, :t])


@forms
@pytest.mark.parametrize(
    "retention",
    [
        {"score_norm": "none"},
        {"head_norm": "layer"},
        {"head_norm": "none"},
        {"gate": False},
        {"theta": "none"},
        {"theta": "linspace", "pairs": "interleaved"},
        {"head_norm_affine": True, "bias": True, "key_width": 8, "value_width": 16},
    ],
    ids=str,
)
def test_every_variant_of_the_mixer_is_one_function_in_every_form(
    form: Form, retention: dict[str, Any]
) -> None:
    model, text = decoder(config(retention)), tokens(2, 36)
    with torch.no_grad():
        want, end = model(text, form="recurrent")
        before, state = model(text[:, :19], form=form)
        after, state = model(text[:, 19:], state, form=form)
    assert_close(torch.cat([before, after], 1), want)
    same_states(state, end)


@forms
@pytest.mark.parametrize(("offset", "tolerance"), [(10**6 + 7, 1e-8), (10**9, 1e-5)])
def test_logits_do_not_depend_on_where_a_text_begins(
    form: Form, offset: int, tolerance: float
) -> None:
    """T25: without a score norm only distances count, so a far offset must be invisible."""
    model, text = decoder(config({"score_norm": "none"})), tokens(2, 40)
    with torch.no_grad():
        near, _ = model(text, empty_state(model, 2, 0), form=form)
        far, state = model(text, empty_state(model, 2, offset), form=form)
    assert_close(far, near, tolerance)
    assert state.position.tolist() == [offset + 40] * 2


@forms
def test_float32_errs_no_more_at_position_one_billion(form: Form) -> None:
    """T25: float32 angles would be off by whole turns."""
    described, text = config({"score_norm": "none"}), tokens(8, 40)
    with torch.no_grad():
        exact, _ = decoder(described)(text, form=form)
        model = decoder(described, torch.float32)
        near, far = (
            (model(text, empty_state(model, 8, position), form=form)[0] - exact).abs().mean()
            for position in (0, 10**9)
        )
    assert far <= 2 * near


@pytest.mark.parametrize("decay", ["pow2", "constant:1"])
def test_forms_and_splits_agree_beyond_position_one_million(decay: str) -> None:
    """T14, T25."""
    model, text = decoder(config({"decay": decay})), tokens(2, 45)
    with torch.no_grad():
        _, state = model(text[:, :9])
        state = state._replace(position=torch.full((2,), 3_000_000))
        want, end = model(text[:, 9:], state, form="recurrent")
        for form in FORMS:
            got, after = model(text[:, 9:], state, form=form)
            assert_close(got, want, 1e-9)
            same_states(after, end, 1e-9)
            first, between = model(text[:, 9:20], state, form=form)
            second, _ = model(text[:, 20:], between, form=form)
            assert_close(torch.cat([first, second], 1), want, 1e-9)
    assert end.position.tolist() == [3_000_036] * 2


def test_unknown_form_is_refused() -> None:
    message = "retention has no torch/fast; choose one of"
    with unchecked(), pytest.raises(ValueError, match=message):
        decoder()(tokens(1, 3), form="fast")


def test_form_is_an_argument_and_not_a_property_of_the_model() -> None:
    """T6: a file or a config cannot force a form upon a caller."""
    assert not {"form", "mode", "chunkwise_recurrent"} & set(vars(replace(config())))
