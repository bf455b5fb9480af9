"""A decoder of RWKV's layers is RWKV-4: its logits and states, and how it begins."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from golden_files import FOLDER, golden
from retnet.mixers.rwkv import RWKVConfig
from retnet.mixers.rwkv_channel import RWKVFFNConfig
from retnet.model import Decoder, DecoderConfig, DecoderState, LayerConfig, preset
from retnet.ops.wkv import WKVState, to_scaled_sums
from retnet.types import FormChoice

every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
every_form = pytest.mark.parametrize("form", ["auto", "parallel", "recurrent", "chunkwise"])

NAMES = {
    "att.key": "branches.0.k_proj",
    "att.value": "branches.0.v_proj",
    "att.receptance": "branches.0.r_proj",
    "att.output": "branches.0.o_proj",
    "att.time_mix": "branches.0.mix",
    "att": "branches.0",
    "ffn.key": "branches.1.k_proj",
    "ffn.value": "branches.1.v_proj",
    "ffn.receptance": "branches.1.r_proj",
    "ffn.time_mix": "branches.1.mix",
    "ln1": "norms.0",
    "ln2": "norms.1",
}
ENDS = {"emb": "embed_tokens", "blocks.0.ln0": "embed_norm", "ln_out": "norm", "head": "lm_head"}


def described(D: int, F: int, L: int, V: int) -> DecoderConfig:
    """Of any size; all else is as in the presets."""
    layer = LayerConfig(mixer=RWKVConfig(), channel=RWKVFFNConfig(width=F), repeat=L)
    return replace(preset("rwkv-169m", V), d_model=D, layers=(layer,))


def renamed(key: str) -> str:
    """Our name of an official parameter."""
    for name, ours in ENDS.items():
        if key.startswith(f"{name}."):
            return ours + key.removeprefix(name)
    _, layer, rest = key.split(".", 2)
    for name, ours in NAMES.items():
        if rest.startswith(name):
            return f"layers.{layer}.{ours}{rest.removeprefix(name)}"
    raise KeyError(key)


@cache
def official(dtype: torch.dtype) -> Decoder:
    weights = load_file(FOLDER / "rwkv4.safetensors")
    model = Decoder(described(D=40, F=88, L=3, V=97))
    model.load_state_dict({renamed(key): x.squeeze() for key, x in weights.items()})
    return model.to(dtype).eval()


def invariant(state: DecoderState) -> Tensor:
    """(B, L, 4, D): ffn_x, att_x, aa / bb, log bb + pp."""
    rows = []
    for time, channel in state.layers:
        aa, bb, pp = to_scaled_sums(WKVState(*time[1:]))
        rows.append(torch.stack((channel.shift, time.shift, aa / bb, bb.log() + pp), 1))
    return torch.stack(rows, 1)


@every_dtype
@every_form
def test_logits_and_states_are_those_of_two_other_implementations(
    form: FormChoice, dtype: torch.dtype
) -> None:
    file, model = golden("rwkv4"), official(dtype)
    with torch.no_grad():
        logits, state = model(file.tokens(), form=form)
    file.assert_agrees(logits, "logits_pip")
    file.assert_agrees(logits, "logits_hf")
    file.assert_agrees(invariant(state), "state_invariant")


@every_dtype
def test_a_text_cut_and_then_read_token_by_token_is_the_same(dtype: torch.dtype) -> None:
    """Traps 14 and 15: two rows at T = 1, each with a state of its own."""
    file, model = golden("rwkv4"), official(dtype)
    tokens, split = file.tokens(), int(file.arrays["in.split"])
    with torch.no_grad():
        first, state = model(tokens[:, :split])
        file.assert_agrees(invariant(state), "state_invariant_at_split")
        logits = [first]
        for t in range(split, tokens.shape[1]):
            step, state = model(tokens[:, t : t + 1], state)
            logits.append(step)
    file.assert_agrees(torch.cat(logits, 1), "logits_pip")
    file.assert_agrees(invariant(state), "state_invariant")


def test_rows_padded_on_the_right_are_as_if_alone() -> None:
    """Trap 15."""
    file, model = golden("rwkv4"), official(torch.float64)
    tokens, lengths = file.tokens(), torch.tensor([48, 31])
    valid = torch.arange(48) < lengths[:, None]
    with torch.no_grad():
        logits, state = model(tokens, valid=valid)
        alone, state_alone = model(tokens[1:, :31])
    torch.testing.assert_close(logits[1:, :31], alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(invariant(state)[1:], invariant(state_alone), rtol=1e-9, atol=1e-9)


def test_a_transposed_weight_another_eps_or_a_tied_head_would_show() -> None:
    """Traps 16 to 18: the limits of the golden file are tight enough."""
    file = golden("rwkv4")
    want = file.arrays["out64.logits_pip"]

    def error(model: Decoder) -> float:
        with torch.no_grad():
            return (model(file.tokens())[0] - want).abs().max().item()

    weights = official(torch.float64).state_dict()
    model = Decoder(described(D=40, F=88, L=3, V=97)).double().eval()
    model.load_state_dict(weights)
    model.norm.eps = 1e-6  # type: ignore[assignment]
    assert error(model) > 1e-7
    for key in ("layers.1.branches.0.k_proj.weight", "layers.1.branches.1.r_proj.weight"):
        model.load_state_dict(weights | {key: weights[key].T})
        assert error(model) > 1e-3
    assert not torch.equal(weights["lm_head.weight"], weights["embed_tokens.weight"])


def test_a_new_model_is_the_norm_of_its_embeddings() -> None:
    """Every block begins as the identity."""
    torch.manual_seed(0)
    model = Decoder(described(D=16, F=64, L=2, V=50)).eval()
    tokens = torch.randint(50, (1, 7))
    with torch.no_grad():
        h, _ = model.hidden(tokens)
        want = model.norm(model.embed_norm(model.embed_tokens(tokens)))
    torch.testing.assert_close(h, want)
    assert model.embed_tokens.weight.abs().max() <= 1e-4
    head = model.lm_head.weight.detach()
    torch.testing.assert_close(head.T @ head, 0.25 * 50 / 16 * torch.eye(16), rtol=1e-4, atol=1e-4)


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = Decoder(described(D=16, F=64, L=2, V=20))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    text = torch.randint(20, (2, 20))
    losses = []
    for _ in range(20):
        logits, _ = model(text[:, :-1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("169m", 1.693e8),
        ("430m", 4.304e8),
        ("1.5b", 1.515e9),
        ("3b", 2.985e9),
        ("7b", 7.393e9),
        ("14b", 1.415e10),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(name: str, published: float) -> None:
    """arXiv:2305.13048, table 2: 2 V D + 13 D^2 L + D (11 L + 4) with V = 50277."""
    config = preset(f"rwkv-{name}", 50_277)
    with torch.device("meta"):
        found = Decoder(config).num_parameters()
    D, L = config.d_model, config.num_layers
    assert found == 2 * 50_277 * D + 13 * D**2 * L + D * (11 * L + 4)
    assert abs(found / published - 1) < 5e-4


def test_a_row_keeps_as_many_numbers_whatever_it_read() -> None:
    model = Decoder(described(D=16, F=64, L=2, V=50)).eval()
    for T in (1, 40):
        _, state = model(torch.zeros(1, T, dtype=torch.int64))
        kept = sum(leaf.numel() for branches in state.layers for s in branches for leaf in s)
        assert kept == 2 * (4 * 16 + 1)
