"""Half precision: weights may be rounded; decay, angles, positions and states may not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.small import FORMS, config, decoder, leaves, tokens
from retnet.mixers.retention import Retention
from retnet.model import Decoder, DecoderConfig, DecoderState
from retnet.types import Form, FormChoice

forms = pytest.mark.parametrize("form", FORMS)
halves = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)


@forms
@halves
def test_states_stay_float32_and_positions_whole_numbers(form: Form, half: torch.dtype) -> None:
    """T10."""
    model = decoder(dtype=half)
    logits, state = model(tokens(2, 9), form=form)
    logits, state = model(tokens(2, 1), state, form=form)
    assert logits.dtype == half
    position, *rest = leaves(state)
    assert position.dtype == torch.int64
    assert rest
    assert all(leaf.dtype == torch.float32 for leaf in rest)


@pytest.mark.parametrize("form", ["auto", *FORMS])
def test_under_autocast_states_stay_float32_and_logits_close(form: FormChoice) -> None:
    """T10, T11."""
    model, text = decoder(dtype=torch.float32), tokens(4, 40)
    with torch.no_grad():
        want, _ = model(text)
        with torch.autocast("cpu", torch.bfloat16):
            got, state = model(text, form=form)
            got_more, _ = model(text, state, form=form)
        more, _ = model(text, model(text)[1])
    assert all(leaf.dtype == torch.float32 for leaf in leaves(state)[1:])
    for a, b in ((got, want), (got_more, more)):
        assert (a.float() - b).abs().mean() < 0.02 * b.std()


def test_casting_a_module_changes_no_decay() -> None:
    """T10: in bfloat16 the decays of heads 4 and up would be 1."""
    model = decoder(config({"num_heads": 8, "value_width": 16}))
    text = tokens(1, 2)
    with torch.no_grad():
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            model = model.to(dtype)
            # after one real token, padding of the next leaves S; a real one decays it
            _, state = model(text[:, :1])
            S = state.layers[0][0].S
            branch: Any = model.layers[0].branches[0]  # type: ignore[union-attr,index]
            for projection in (branch.k_proj, branch.v_proj):
                weight = projection.weight.clone()
                projection.weight.zero_()  # the second token adds nothing
                _, after = model(text[:, 1:], state)
                projection.weight.copy_(weight)
                decay = (after.layers[0][0].S.double() / S.double())[0, :, 0, 0]
                want = 1 - 2.0 ** (-5 - torch.arange(8, dtype=torch.float64))
                torch.testing.assert_close(decay, want, rtol=3e-7, atol=0)


def mean_error_along(half: Tensor, exact: Tensor) -> tuple[float, float]:
    """Mean error over tokens 64 to 192, and over the last 128."""
    error = (half.float() - exact).abs().mean((0, 2))
    return error[64:192].mean().item(), error[-128:].mean().item()


def rounded_pair(described: DecoderConfig) -> tuple[Decoder, Decoder]:
    """A float32 decoder whose weights bfloat16 can hold, and the same in bfloat16."""
    half = decoder(described, torch.bfloat16)
    exact = Decoder(described)
    exact.load_state_dict({key: w.float() for key, w in half.state_dict().items()})
    return exact.eval(), half


@pytest.mark.parametrize("form", ["parallel", "chunkwise"])
def test_the_error_of_bfloat16_does_not_grow_with_position(form: Form) -> None:
    """T10: with angles in bfloat16, positions collide from 256 on and the error grows fivefold."""
    exact, half = rounded_pair(config({"num_heads": 4, "value_width": 16}))
    text = tokens(4, 1280)
    with torch.no_grad():
        early, late = mean_error_along(half(text, form=form)[0], exact(text, form="chunkwise")[0])
    assert late < 1.3 * early, (early, late)


def test_the_error_of_bfloat16_does_not_grow_over_two_thousand_recurrent_steps() -> None:
    """T10: sums of decays saturate at 256 in bfloat16, and so would states."""
    exact, half = rounded_pair(replace(config(), layers=config().layers[:1]))
    text = tokens(4, 2048)
    state: DecoderState | None = None
    parts = []
    with torch.inference_mode():
        for part in text.split(64, 1):
            logits, state = half(part, state, form="recurrent")
            parts.append(logits)
        early, late = mean_error_along(torch.cat(parts, 1), exact(text)[0])
    assert late < 1.3 * early, (early, late)


@forms
@pytest.mark.parametrize("scale", [10, 1000])
def test_half_precision_activations_of_a_thousand_stay_finite_and_right(
    form: Form, scale: float
) -> None:
    """T11: float16 ends at 65504, and o before its norm grows with the cube of the scale."""
    described = config({"head_norm": "rms"})
    model = decoder(described, torch.float32, scale=scale)
    text = tokens(4, 60)
    with torch.no_grad():
        want, _ = model(text, form=form)
        largest: list[float] = []
        for module in model.modules():
            if isinstance(module, Retention):
                module.q_proj.register_forward_hook(
                    lambda *args: largest.append(args[2].abs().max().item())
                )
        model.half()
        got, state = model(text, form=form)
    assert max(largest) > 0.5 * scale
    assert got.isfinite().all()
    assert all(leaf.isfinite().all() for leaf in leaves(state))
    assert (got.float() - want).abs().mean() < 0.02 * want.std()


@halves
def test_training_in_half_precision_has_finite_gradients(half: torch.dtype) -> None:
    """T11."""
    model = decoder(dtype=half)
    text = tokens(4, 50)
    for form in FORMS:
        model.zero_grad()
        logits, _ = model(text, form=form)
        torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), text.flatten()).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.dtype == half
            assert parameter.grad.isfinite().all(), (form, name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run on a CUDA machine")
def test_everything_follows_the_tokens_to_their_device() -> None:
    """T23: a mask or a table built on the CPU would clash with tensors elsewhere."""
    model = decoder(dtype=torch.float32)
    text, flags = tokens(2, 40), torch.ones(2, 40, dtype=torch.bool)
    want, _ = model(text)
    model, text, flags = model.cuda(), text.cuda(), flags.cuda()
    for form in FORMS:
        logits, state = model(text, form=form)
        torch.testing.assert_close(logits.cpu(), want, rtol=1e-2, atol=1e-2)
        logits, state = model(text, state, valid=flags, starts=flags, form=form)
        assert {leaf.device.type for leaf in (logits, *leaves(state))} == {"cuda"}
