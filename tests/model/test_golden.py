"""Our decoder with the weights of public RetNets gives their logits and states."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden_files import FOLDER, golden
from model.golden_mapping import FLA, SYNCDOTH, TORCHSCALE, decoder
from retnet.mixers.retention import RetentionConfig, log_decays
from retnet.model import Decoder, DecoderState
from retnet.ops import retention
from retnet.ops.rotation import frequencies
from retnet.types import Form

FORMS = ("parallel", "recurrent", "chunkwise")
DTYPES = (torch.float64, torch.float32)

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
forms = pytest.mark.parametrize("form", FORMS)


def run(model: Decoder, tokens: Tensor, form: Form) -> tuple[Tensor, DecoderState]:
    with torch.no_grad():
        return model(tokens, form=form)


def squared_scale(model: Decoder, state: DecoderState) -> Tensor:
    """c_n^2 after the last token, summed term by term: (B, H, 1, 1)."""
    config = model.config.layers[0].mixer
    assert isinstance(config, RetentionConfig)
    decay = log_decays(config.decay, config.num_heads).exp()
    rows = [
        torch.stack([decay**j for j in range(int(position))]).sum(0) for position in state.position
    ]
    return torch.stack(rows)[:, :, None, None]


@dtypes
@pytest.mark.parametrize("name", TORCHSCALE + SYNCDOTH)
def test_score_norm_torchscale_reproduces_the_official_parallel_logits(
    name: str, dtype: torch.dtype
) -> None:
    file, model = golden(name), decoder(name, "torchscale", dtype)
    logits, _ = run(model, file.tokens(), "parallel")
    file.assert_agrees(logits, "logits_parallel")
    logits, _ = model(file.tokens())  # auto chooses the one form that has this normaliser
    file.assert_agrees(logits, "logits_parallel")


@dtypes
@forms
@pytest.mark.parametrize("name", TORCHSCALE + SYNCDOTH)
def test_score_norm_scaled_reproduces_the_official_token_by_token_logits_in_every_form(
    name: str, form: Form, dtype: torch.dtype
) -> None:
    """T1, T2: the form whose normaliser needs the position only, square root included."""
    file, model = golden(name), decoder(name, "scaled", dtype)
    logits, _ = run(model, file.tokens(), form)
    file.assert_agrees(logits, "logits_recurrent")


@dtypes
@forms
@pytest.mark.parametrize("name", TORCHSCALE)
def test_states_are_the_official_cache_times_its_scale(
    name: str, form: Form, dtype: torch.dtype
) -> None:
    """The official cache is S^T / c and `scale` c^2."""
    file, model = golden(name), decoder(name, "scaled", dtype)
    _, state = run(model, file.tokens(), form)
    scale = squared_scale(model, state)
    for i, branches in enumerate(state.layers):
        file.assert_agrees(scale[0, :, 0, 0].to(dtype), f"state{i}_scale")
        cache = branches[0].S.mT / scale.sqrt()
        file.assert_agrees(cache.to(dtype), f"state{i}_prev_key_value")


@dtypes
@pytest.mark.parametrize("name", SYNCDOTH)
def test_states_are_those_of_the_parallel_pass_in_syncdoth(name: str, dtype: torch.dtype) -> None:
    file, model = golden(name), decoder(name, "torchscale", dtype)
    _, state = run(model, file.tokens(), "parallel")
    scale = squared_scale(model, state)
    for i, branches in enumerate(state.layers):
        file.assert_agrees(scale[:1].to(dtype), f"state{i}_scale")
        cache = branches[0].S.mT / scale.sqrt()
        file.assert_agrees(cache.to(dtype), f"state{i}_prev_key_value")


@dtypes
def test_left_padding_in_syncdoth_is_ours(dtype: torch.dtype) -> None:
    """T9."""
    file, model = golden("syncdoth_glu"), decoder("syncdoth_glu", "torchscale", dtype)
    valid = file.tokens("mask_leftpad").bool()
    with torch.no_grad():
        logits, _ = model(file.tokens("tokens_leftpad"), valid=valid, form="parallel")
    file.assert_agrees(logits * valid[..., None], "logits_leftpad")


@dtypes
@forms
def test_left_padding_in_fla_is_ours(form: Form, dtype: torch.dtype) -> None:
    """T9."""
    file, model = golden("fla_retnet_gqa"), decoder("fla_retnet_gqa", "none", dtype)
    valid = file.tokens("mask_leftpad").bool()
    with torch.no_grad():
        logits, _ = model(file.tokens("tokens_leftpad"), valid=valid, form=form)
    file.assert_agrees(logits * valid[..., None], "logits_leftpad")


@dtypes
@forms
@pytest.mark.parametrize("name", FLA)
def test_score_norm_none_reproduces_fla_logits_and_states_in_every_form(
    name: str, form: Form, dtype: torch.dtype
) -> None:
    file, model = golden(name), decoder(name, "none", dtype)
    logits, state = run(model, file.tokens(), form)
    file.assert_agrees(logits, "logits")
    heads_k = model.layers[0].branches[0].D_k  # type: ignore[union-attr,index]
    for i, branches in enumerate(state.layers):
        # theirs scales q and ours k, so that their state is larger
        file.assert_agrees(branches[0].S * heads_k**0.5, f"state{i}")


@pytest.mark.parametrize("name", FLA)
def test_prefill_then_decode_reproduces_fla_decoding(name: str) -> None:
    """T4, T5: a prompt in one call, then one token a call."""
    file, model = golden(name), decoder(name, "none", torch.float32)
    tokens, split = file.tokens(), int(file.arrays["in.split"])
    with torch.no_grad():
        logits, state = model(tokens[:, :split])
        parts = [logits]
        for n in range(split, tokens.shape[1]):
            logits, state = model(tokens[:, n : n + 1], state)
            parts.append(logits)
    file.assert_agrees(torch.cat(parts, 1), "logits_decode")


@pytest.mark.parametrize("name", TORCHSCALE + SYNCDOTH + FLA)
def test_hidden_states_of_every_layer_agree(name: str) -> None:
    file, model = golden(name), decoder(name, "torchscale", torch.float32)
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        last, _ = model.hidden(file.tokens(), form="parallel")
    if not name.startswith("torchscale"):  # the other two store what leaves the final norm
        seen[-1] = last
    file.assert_agrees(torch.stack(seen), "hidden")


@pytest.mark.parametrize("name", TORCHSCALE)
def test_what_enters_and_leaves_a_retention_layer_agrees(name: str) -> None:
    file, model = golden(name), decoder(name, "torchscale", torch.float32)
    seen: dict[str, Tensor] = {}
    module = model.layers[1].branches[0]  # type: ignore[union-attr,index]
    module.register_forward_hook(  # type: ignore[union-attr]
        lambda _, args, out: seen.update(x=args[0], y=out[0])
    )
    with torch.no_grad():
        model.hidden(file.tokens(), form="parallel")
    file.assert_agrees(seen["x"], "ret1_x")
    file.assert_agrees(seen["y"], "ret1_parallel_y")


@pytest.mark.parametrize("name", TORCHSCALE + SYNCDOTH)
def test_our_angles_and_decays_are_the_stored_ones(name: str) -> None:
    """Their buffers are float32 and ours computed, hence the tolerance."""
    weights = load_file(FOLDER / f"{name}.safetensors")
    angle, decay = (
        next(tensor for key, tensor in weights.items() if key.endswith(f"retnet_rel_pos.{kind}"))
        for kind in ("angle", "decay")
    )
    rule = "linspace" if golden(name).config.get("use_lm_decay") else "pow2"
    ours = frequencies("linspace", len(angle)).repeat_interleave(2)
    torch.testing.assert_close(ours.float(), angle, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_decays(rule, len(decay)).float(), decay, rtol=1e-5, atol=0)


@dtypes
@forms
def test_op_reproduces_fla_with_and_without_a_state(form: Form, dtype: torch.dtype) -> None:
    file = golden("fla_retention_op")
    q, k, v, state = (
        file.arrays[f"in.{name}"].to(dtype) for name in ("q", "k", "v", "initial_state")
    )
    q, log_decay = q * q.shape[-1] ** -0.5, log_decays("pow2", q.shape[2])
    o, S = retention(q, k, v, log_decay, form=form)
    for output in ("naive", "recurrent"):
        file.assert_agrees(o, output)
    file.assert_agrees(S, "final_state")
    o, S = retention(q, k, v, log_decay, state, form=form)
    file.assert_agrees(o, "recurrent_with_state")
    file.assert_agrees(S, "final_state_with_state")
