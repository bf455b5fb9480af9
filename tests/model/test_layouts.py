"""Stacks of windows and full attention: sizes, how far they see, and what shifts with the text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.small import close
from retnet.mixers.attention import AttentionConfig
from retnet.mixers.channel import GLUConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig, preset
from retnet.model.layouts import hwfa, hwfa2
from retnet.ops import Layout


def stack(num_layers: int, d_model: int = 16, num_heads: int = 2) -> DecoderConfig:
    layer = LayerConfig(
        mixer=AttentionConfig(num_heads=num_heads), channel=GLUConfig(width=16), repeat=num_layers
    )
    return DecoderConfig(d_model=d_model, layers=(layer,), vocab_size=11)


def mixers(config: DecoderConfig) -> list[AttentionConfig]:
    found = [layer.mixer for layer in config.layers for _ in range(layer.repeat)]
    assert all(isinstance(mixer, AttentionConfig) for mixer in found)
    return found  # type: ignore[return-value]


def test_the_source_s_size_has_the_source_s_window() -> None:
    of = mixers(hwfa(stack(24), 512))
    assert [m.window for m in of] == [17] * 23 + [None]
    assert {m.position for m in of[:-1]} == {"rope"}
    assert (of[-1].position, of[-1].log_n, of[-1].train_len) == ("none", "always", 512)
    assert [layer.repeat for layer in hwfa(stack(24), 512).layers] == [23, 1]


@given(num_layers=st.integers(2, 40), train_len=st.integers(128, 8192))
def test_the_windows_are_the_largest_that_see_three_quarters(
    num_layers: int, train_len: int
) -> None:
    window = mixers(hwfa(stack(num_layers), train_len))[0].window
    assert window is not None
    assert (window - 1) * (num_layers - 1) + 1 <= 0.75 * train_len
    assert window * (num_layers - 1) + 1 > 0.75 * train_len


def body(model: Decoder, tokens: Tensor, layers: int) -> tuple[Tensor, Tensor]:
    """Embeddings and the features after so many layers."""
    x = h = model.embed_tokens(tokens).detach().requires_grad_()
    layout = Layout.of(*tokens.shape)
    for layer in list(model.layers)[:layers]:
        h, _ = layer(h, None, layout, "auto")
    return x, h


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    return Decoder(hwfa(stack(4), 24)).double().eval()  # windows of 6


def test_window_layers_see_no_further_than_a_text_in_training(model: Decoder) -> None:
    tokens = torch.randint(11, (1, 40), generator=torch.Generator().manual_seed(1))
    x, h = body(model, tokens, 3)
    h[0, -1].square().sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().amax(-1).nonzero().flatten()
    assert 40 - seen.min() == 16 == (6 - 1) * 3 + 1


def test_the_same_words_later_in_a_text_have_the_same_features(model: Decoder) -> None:
    rng = torch.Generator().manual_seed(2)
    words, before = (torch.randint(11, (1, n), generator=rng) for n in (30, 17))
    _, alone = body(model, words, 3)
    _, later = body(model, torch.cat([before, words], 1), 3)
    close(later[:, 17 + 15 :], alone[:, 15:])


def test_the_full_layer_knows_no_order(model: Decoder) -> None:
    h = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    mixed = torch.cat([h[:, torch.tensor([4, 2, 0, 7, 5, 1, 6, 3])], h[:, 8:]], 1)
    (last,) = list(model.layers)[3:]
    outputs = [last(x, None, Layout.of(1, 9), "auto")[0][:, -1] for x in (h, mixed)]
    close(outputs[1], outputs[0])


@torch.no_grad()
def test_only_the_full_layer_s_state_grows(model: Decoder) -> None:
    tokens = torch.randint(11, (1, 50))
    sizes = [
        [sum(leaf.numel() for leaf in states[0]) for states in model(tokens[:, :n])[1].layers]
        for n in (30, 50)
    ]
    assert sizes[0][:3] == sizes[1][:3] == [2 * 6 * 16] * 3
    assert [s[3] for s in sizes] == [2 * 30 * 16, 2 * 50 * 16]
    y, state = model(tokens[:, :20])
    parts = [y]
    for t in range(20, 50):
        y, state = model(tokens[:, t : t + 1], state)
        parts.append(y)
    close(torch.cat(parts, 1), model(tokens)[0])


@settings(max_examples=20)
@given(num_layers=st.integers(4, 30), full_layers=st.integers(1, 2))
def test_the_second_form_has_its_full_layers_inside(num_layers: int, full_layers: int) -> None:
    of = mixers(hwfa2(stack(num_layers), 512, full_layers))
    full = [i for i, m in enumerate(of) if m.window is None]
    L = num_layers
    assert full == ([L // 2] if full_layers == 1 else [L // 3, 2 * L // 3])
    assert {m.window for m in of} - {None} == {3 * 512 // L}
    assert {m.position for m in of} == {"rope"}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="the decoder has 1 layer; windows and a full layer need"):
        hwfa(stack(1), 512)
    with pytest.raises(ValueError, match=r"train_len \(8\) is too short for 6 layers: their win"):
        hwfa(stack(6), 8)
    with pytest.raises(ValueError, match=r'layer 0 mixes tokens by retention; .*rival\(config, "a'):
        hwfa(preset("small-1m"), 512)
    with pytest.raises(ValueError, match=r"full_layers \(3\) must be 1 or 2 and stand between"):
        hwfa2(stack(9), 512, 3)
    with pytest.raises(ValueError, match=r"train_len \(4\) is too short for 9 layers: windows of"):
        hwfa2(stack(9), 4)
