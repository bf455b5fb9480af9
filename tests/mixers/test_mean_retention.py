import math

import pytest
import torch
from torch import Tensor

from retnet.mixers.mean_retention import MeanRetention, MeanRetentionConfig
from retnet.mixers.retention import log_decays
from retnet.ops import Layout


def by_definition(layer: MeanRetention, x: Tensor) -> Tensor:
    """Token by token, head by head, from the formula."""
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    q, k, v, g = (
        proj(torch.lerp(before, x, mix)).unflatten(-1, (layer.config.num_heads, -1))
        for proj, mix in (
            (layer.q_proj, layer.mix_q),
            (layer.k_proj, layer.mix_k),
            (layer.v_proj, layer.mix_v),
            (layer.g_proj, layer.mix_g),
        )
    )
    decays = log_decays(layer.config.decay, layer.config.num_heads).exp()
    o = torch.zeros_like(v)
    for n in range(len(x)):
        for h, decay in enumerate(decays):
            weights = torch.stack(
                [decay ** (n - j) * (q[n, h].exp() @ k[j, h].exp()) for j in range(n + 1)]
            )
            o[n, h] = weights @ v[: n + 1, h] / weights.sum()
    return layer.o_proj((g.sigmoid() * o).flatten(1))


@pytest.mark.parametrize("form", ["parallel", "recurrent", "chunkwise"])
def test_every_form_is_a_mean_with_exponential_weights(form: str) -> None:
    torch.manual_seed(0)
    layer = MeanRetention(MeanRetentionConfig(num_heads=2, key_width=6), 8).double()
    x = torch.randn(9, 8, dtype=torch.float64)
    y, _ = layer(x[None], None, Layout.of(1, 9), form)  # type: ignore[arg-type]
    assert torch.allclose(y[0], by_definition(layer, x), rtol=1e-9)


def test_outputs_are_as_finite_as_values_however_large_a_key_is() -> None:
    layer = MeanRetention(MeanRetentionConfig(num_heads=2), 8)
    with torch.no_grad():
        layer.k_proj.weight.mul_(1e6)
        layer.q_proj.weight.mul_(-1e6)
    y, state = layer(torch.randn(1, 50, 8), None, Layout.of(1, 50))
    assert y.isfinite().all()
    assert all(part.isfinite().all() for part in state)
    assert state.z.abs().max() <= 512 * math.exp(12)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"key_width \(7\) must be a multiple of num_heads \(2\)"):
        MeanRetentionConfig(num_heads=2, key_width=7).build(8)
    with pytest.raises(ValueError, match=r"num_heads \(0\) must be at least 1"):
        MeanRetentionConfig(num_heads=0)
