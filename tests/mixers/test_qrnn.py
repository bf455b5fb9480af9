"""The quasi-recurrent network: the reference's numbers, and what its gates do at their ends."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golden_files import golden
from retnet.mixers.qrnn import QRNN, QRNNConfig, QRNNState
from retnet.ops import Layout, linear_recurrence

PRECISIONS = (torch.float32, torch.float64)


def run(mixer: QRNN, x: Tensor, state: QRNNState | None = None) -> tuple[Tensor, QRNNState]:
    return mixer(x, state, Layout.of(*x.shape[:2]))


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("form", ["recurrent", "parallel", "chunkwise"])
def test_pooling_agrees_with_pytorch_qrnn(form: Any, dtype: torch.dtype) -> None:
    """Its f is 1 minus the paper's, and its axes are (T, B, W)."""
    file = golden("qrnn_forget_mult")
    f, x = (file.arrays[f"in.{name}"].to(dtype).transpose(0, 1) for name in ("f", "x"))
    h0 = file.arrays["in.h0"].to(dtype)
    for name, state in (("h", h0), ("h_no_state", None)):
        h, _ = linear_recurrence(1 - f, f * x, state, form=form)
        file.assert_agrees(h.transpose(0, 1), name)


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_layer_agrees_with_pytorch_qrnn(dtype: torch.dtype) -> None:
    file = golden("qrnn_layer")
    D, W = file.config["input_size"], file.config["hidden_size"]
    mixer = QRNNConfig(width=W).build(D)
    flip = torch.ones(3, W)
    flip[1] = -1  # sigmoid(-a) = 1 - sigmoid(a)
    weights = file.weights()
    with torch.no_grad():
        mixer.in_proj.weight.copy_(flip.flatten()[:, None] * weights["linear.weight"])
        mixer.in_proj.bias.copy_(flip.flatten() * weights["linear.bias"])
    mixer.to(dtype)
    pooled: list[Tensor] = []
    assert isinstance(mixer.out_proj, nn.Linear)
    mixer.out_proj.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    x, c0 = (file.arrays[f"in.{name}"].to(dtype) for name in ("x", "c0"))
    state = QRNNState(c0, x.new_zeros(len(c0), 1, D))
    _, after = run(mixer, x.transpose(0, 1), state)
    file.assert_agrees(pooled[0].transpose(0, 1), "y")
    file.assert_agrees(after.c[None], "c_last")
    assert torch.equal(after.inputs[:, 0], x[-1])


def with_forget_gate(value: float, **given: Any) -> QRNN:
    mixer = QRNNConfig(out_proj=False, pooling="f", **given).build(4)
    nn.init.zeros_(mixer.in_proj.weight[4:].data)
    nn.init.constant_(mixer.in_proj.bias[4:].data, value)
    return mixer


def test_a_gate_that_forgets_all_leaves_the_convolution() -> None:
    mixer, x = with_forget_gate(-100.0, window=3), torch.randn(2, 9, 4)
    y, _ = run(mixer, x)
    padded = torch.cat([torch.zeros(2, 2, 4), x], 1)
    seen = torch.cat([padded[:, 2:], padded[:, 1:-1], padded[:, :-2]], -1)
    want = torch.tanh(seen @ mixer.in_proj.weight[:4].T)
    torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-6)


def test_a_gate_that_forgets_nothing_keeps_the_state() -> None:
    mixer = with_forget_gate(100.0)
    c = torch.randn(2, 4)
    y, after = run(mixer, torch.randn(2, 9, 4), QRNNState(c, torch.zeros(2, 1, 4)))
    assert torch.equal(y, c[:, None].expand_as(y))
    assert torch.equal(after.c, c)


@pytest.mark.parametrize("pooling", ["f", "fo", "ifo"])
def test_zoneout_keeps_cells_in_training_only(pooling: Any) -> None:
    mixer, x = QRNNConfig(zoneout=0.5, pooling=pooling).build(64), torch.randn(8, 1, 64)
    state = QRNNState(torch.randn(8, 64), torch.zeros(8, 1, 64))
    kept = (run(mixer, x, state)[1].c == state.c).float().mean().item()
    assert kept == pytest.approx(0.5, abs=0.15)
    mixer.eval()
    assert not (run(mixer, x, state)[1].c == state.c).any()
    plain = QRNNConfig(pooling=pooling).build(64)
    plain.load_state_dict(mixer.state_dict())
    assert torch.equal(run(plain, x, state)[0], run(mixer, x, state)[0])


def test_half_precision_keeps_its_state_in_float32() -> None:
    mixer = QRNNConfig(window=3).build(4).to(torch.bfloat16)
    y, state = run(mixer, torch.randn(2, 5, 4).bfloat16())
    assert y.dtype == torch.bfloat16
    assert {leaf.dtype for leaf in state} == {torch.float32}
    run(mixer, torch.randn(2, 5, 4).bfloat16(), state)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"width": 0}, r"width \(0\) must be at least 1"),
        ({"window": 0}, r"window \(0\) must be at least 1"),
        ({"zoneout": 1.0}, r"zoneout \(1.0\) must be a probability"),
        ({"width": 3, "out_proj": False}, r"width \(3\) must be d_model \(4\)"),
    ],
)
def test_config_refuses(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        QRNNConfig(**given).build(4)
