"""LSTM and GRU: PyTorch's numbers, their equations, and what is theirs alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from golden_files import Golden, golden
from retnet.mixers.gated_rnn import GatedRNN, GRUConfig, LSTMConfig
from retnet.ops import Layout

CONFIGS = {"lstm": LSTMConfig, "gru": GRUConfig}
every_kind = pytest.mark.parametrize("name", list(CONFIGS))


def run(mixer: GatedRNN, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    return mixer(x, state, Layout.of(*x.shape[:2]))


def layers(name: str, file: Golden, dtype: torch.dtype) -> list[GatedRNN]:
    """Both layers of the file."""
    weights, W = file.weights(), file.config["hidden_size"]
    stack = []
    for layer, width in enumerate((file.config["input_size"], W)):
        mixer = CONFIGS[name](width=W).build(width)
        with torch.no_grad():
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(mixer.cell, f"{kind}_l0").copy_(weights[f"{kind}_l{layer}"])
        stack.append(mixer.to(dtype))
    return stack


def before_projection(mixer: GatedRNN, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """What enters the output layer, and the state."""
    entered: list[Tensor] = []
    hook = mixer.out_proj.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    _, state = run(mixer, x, state)
    hook.remove()
    return entered[0], state


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_layers_agree_with_pytorch(name: str, dtype: torch.dtype) -> None:
    file = golden(name)
    stack = layers(name, file, dtype)
    given = {key: x.to(dtype) for key, x in file.arrays.items() if key.startswith("in.")}
    names = ("h", "c")[: len(stack[0].kind.state._fields)]
    for output, from_state in (("y", True), ("y_no_state", False)):
        y, last = given["in.x"], []
        for layer, mixer in enumerate(stack):
            leaves = [given[f"in.{leaf}0"][layer] for leaf in names]
            before = mixer.kind.state(*leaves) if from_state else None
            y, state = before_projection(mixer, y, before)
            last.append(state)
        file.assert_agrees(y, output)
        if from_state:
            for index, leaf in enumerate(names):
                file.assert_agrees(torch.stack([state[index] for state in last]), f"{leaf}_last")


def test_lstm_is_its_equations() -> None:
    mixer = LSTMConfig().build(5).double()
    W, U, b, d = mixer.cell.all_weights[0]
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    h = c = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(7):
        i, f, g, o = (x[:, t] @ W.T + h @ U.T + b + d).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    y, state = run(mixer, x)
    torch.testing.assert_close(state.h, h)
    torch.testing.assert_close(state.c, c)
    torch.testing.assert_close(y[:, -1], h @ mixer.out_proj.weight.T)


def test_gru_is_its_equations() -> None:
    mixer = GRUConfig().build(5).double()
    W, U, b, d = mixer.cell.all_weights[0]
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    h = torch.zeros(2, 5, dtype=torch.float64)
    for t in range(7):
        (r, z, n), (r_h, z_h, n_h) = ((x[:, t] @ W.T + b).chunk(3, -1), (h @ U.T + d).chunk(3, -1))
        n = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
        z = torch.sigmoid(z + z_h)
        h = (1 - z) * n + z * h
    torch.testing.assert_close(run(mixer, x)[1].h, h)


def test_forget_gates_begin_open() -> None:
    *_, bias, other = LSTMConfig().build(6).cell.all_weights[0]
    assert torch.equal(bias + other, torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(6))
    *_, bias, other = GRUConfig().build(6).cell.all_weights[0]
    assert not (bias + other).any()


@every_kind
def test_half_precision_computes_in_float32(name: str) -> None:
    mixer = CONFIGS[name]().build(6).to(torch.bfloat16)
    x = torch.randn(2, 5, 6).bfloat16()
    y, state = run(mixer, x)
    assert y.dtype == torch.bfloat16
    wide, wide_state = run(mixer.float(), x.float())
    for leaf, want in zip(state, wide_state, strict=True):
        assert leaf.dtype == torch.float32
        torch.testing.assert_close(leaf, want)
    torch.testing.assert_close(y.float(), wide, rtol=0.02, atol=0.02)
    with torch.autocast("cpu", torch.bfloat16):
        assert {leaf.dtype for leaf in run(mixer, x.float())[1]} == {torch.float32}


@every_kind
def test_gates_shut_to_the_last_digit_in_float32_too(name: str) -> None:
    """Documents and padding in one row leave no trace, in values, states and gradients."""
    mixer, x = CONFIGS[name]().build(6), torch.randn(1, 9, 6)
    for weight in mixer.parameters():
        torch.nn.init.normal_(weight)
    valid, starts = torch.ones(1, 9).bool(), torch.zeros(1, 9).bool()
    valid[0, [2, 6]] = False
    starts[0, 4] = True
    grads = []
    y, state = mixer(x, None, Layout.of(1, 9, valid=valid, starts=starts))
    y[valid].square().sum().backward()
    grads.append([p.grad for p in mixer.parameters()])
    mixer.zero_grad()
    first, _ = run(mixer, x[:, [0, 1, 3]])
    second, want = run(mixer, x[:, [4, 5, 7, 8]])
    together = torch.cat([first, second], 1)
    together.square().sum().backward()
    grads.append([p.grad for p in mixer.parameters()])
    torch.testing.assert_close(y[:, valid[0]], together)
    for leaf, other in zip(state, want, strict=True):
        torch.testing.assert_close(leaf, other)
    for got, other in zip(*grads, strict=True):
        torch.testing.assert_close(got, other, rtol=1e-4, atol=1e-5)


@every_kind
def test_config_refuses(name: str) -> None:
    with pytest.raises(ValueError, match=r"width \(0\) must be at least 1"):
        CONFIGS[name](width=0)
