"""Two RetNets that others wrote from the paper: what of them our parts can express, they equal."""

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from golden_files import FOLDER, Golden, golden
from retnet.mixers.channel import FFNConfig
from retnet.mixers.retention import RetentionConfig, log_decays
from retnet.model import Decoder, DecoderConfig, LayerConfig
from retnet.ops import Layout, retention
from retnet.ops.rotation import frequencies, rotate, turning_tables
from retnet.types import Form

FORMS = ("parallel", "recurrent", "chunkwise")

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
forms = pytest.mark.parametrize("form", FORMS)

FKODOM = {
    "norms.0": "norm1",
    "branches.0.q_proj": "retention.q_proj",
    "branches.0.k_proj": "retention.k_proj",
    "branches.0.v_proj": "retention.v_proj",
    "branches.0.g_proj": "retention.g_proj",
    "branches.0.o_proj": "retention.out_proj",
    "norms.1": "norm2",
    "branches.1.up_proj": "linear1",
    "branches.1.down_proj": "linear2",
}


def fkodom() -> tuple[Decoder, dict[str, Tensor]]:
    """Our decoder with the weights of yet-another-retnet, and these.

    Theirs has no norm before the head, which is left out here, and a head with a bias.
    """
    theirs = load_file(FOLDER / "fkodom_retnet.safetensors")
    layer = LayerConfig(
        mixer=RetentionConfig(
            num_heads=2,
            value_width=32,
            decay="linspace",
            theta="linspace",
            pairs="interleaved",
            score_norm="none",
            head_norm="layer",
            bias=True,
        ),
        channel=FFNConfig(width=48, activation="swish"),
        repeat=3,
    )
    model = Decoder(DecoderConfig(d_model=32, vocab_size=91, norm="layer", layers=(layer,)))
    model.norm = torch.nn.Identity()
    ours = {"embed_tokens.weight": "embedding.weight", "lm_head.weight": "out.weight"}
    ours |= {
        f"layers.{i}.{name}.{kind}": f"decoder.layers.{i}.{other}.{kind}"
        for i in range(3)
        for name, other in FKODOM.items()
        for kind in ("weight", "bias")
    }
    model.load_state_dict({name: theirs[other] for name, other in ours.items()})
    return model, theirs


@dtypes
@forms
def test_yet_another_retnet_is_one_of_our_configs(form: Form, dtype: torch.dtype) -> None:
    """LayerNorm per head without weights, biases everywhere, no score normaliser."""
    file, (model, theirs) = golden("fkodom_retnet"), fkodom()
    with torch.no_grad():
        logits, state = model.to(dtype)(file.tokens(), form=form)
    file.assert_agrees(logits + theirs["out.bias"].to(dtype), f"logits_{form}")
    states = torch.stack([branches[0].S for branches in state.layers])
    for name in ("recurrent", "chunkwise"):
        file.assert_agrees(states, f"state_{name}")


def xpos(file: Golden, x: Tensor, positions: Tensor, power: float) -> Tensor:
    """Rotated by position n, and pair m of all D times `((2 m + 0.4 D) / 1.4 D)^(power n / 512)`.

    With 1 for queries and -1 for keys it is a second decay on top of the heads' own, which no
    option of ours adds: the official code has it not.
    """
    D = x.shape[-1]
    cos, sin = turning_tables(positions, frequencies("rope", D), torch.float64)
    zeta = (2 * torch.arange(D // 2).double() + 0.4 * D) / (1.4 * D)
    stored = file.weights()["retentions.0.retentions.0.xpos.scale"]
    torch.testing.assert_close(stored, zeta.float())
    scale = zeta ** (power * positions.double()[..., None, None] / 512)
    return rotate(x, (cos * scale).to(x.dtype), (sin * scale).to(x.dtype), "interleaved")


def jamie(
    file: Golden, form: Form, dtype: torch.dtype, first: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, states and what enters the norms of heads, positions counted from `first`."""
    weights = {key: x.to(dtype) for key, x in file.weights().items()}
    x, heads = file.arrays["in.x"].to(dtype), file.config["heads"]
    positions = torch.arange(first, first + x.shape[1])[None]
    log_decay, ffn = log_decays("linspace", heads), FFNConfig(width=48).build(32).to(dtype)
    states, raws = [], []
    for i in range(file.config["layers"]):

        def normed(y: Tensor, name: str, i: int = i) -> Tensor:
            weight, bias = (
                weights[f"layer_norms_{name}.{i}.{kind}"] for kind in ("weight", "bias")
            )
            return F.layer_norm(y, y.shape[-1:], weight, bias)

        own = f"retentions.{i}."
        h = normed(x, "1")
        q, k, v = (
            torch.stack([h @ weights[f"{own}retentions.{n}.W_{name}"] for n in range(heads)], 2)
            for name in "QKV"
        )
        q, k = (xpos(file, y, positions, power) for y, power in ((q, 1.0), (k, -1.0)))
        o, S = retention(q, k, v, log_decay, form=form)
        states.append(S)
        raws.append(o)
        weight, bias = (weights[f"{own}group_norm.{kind}"] for kind in ("weight", "bias"))
        normal = F.group_norm(o.flatten(0, 1).flatten(1), heads, weight, bias).view_as(x)
        x = x + (F.silu(h @ weights[f"{own}W_G"]) * normal) @ weights[f"{own}W_O"]
        ffn.load_state_dict(
            {
                f"{name}.{kind}": weights[f"ffns.{i}.{index}.{kind}"]
                for name, index in (("up_proj", 0), ("down_proj", 2))
                for kind in ("weight", "bias")
            }
        )
        x = x + ffn(normed(x, "2"), None, Layout.of(*x.shape[:2]))[0]
    return x, torch.stack(states), torch.stack(raws)


@dtypes
@forms
@torch.no_grad()
def test_our_retention_and_ffn_are_those_of_jamie_stirlings_retnet(
    form: Form, dtype: torch.dtype
) -> None:
    """Its own xPos scales, and norms of heads with weights and biases, are put around our parts.

    Its token-by-token form counts positions from 1, the others from 0: outputs know distances
    only, states do not.
    """
    file = golden("jamie_retnet")
    for first, name in ((0, "chunkwise"), (1, "recurrent")):
        y, states, raw = jamie(file, form, dtype, first)
        file.assert_agrees(y, f"y_{form}")
        file.assert_agrees(states, f"state_{name}")
        file.assert_agrees(raw[0, :, :, 0], "raw_head0")
