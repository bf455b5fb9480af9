"""What each option of attention promises beyond the contract of all branches."""

import logging
import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixers.cases import TOKEN_CASES, D, build, config
from retnet.mixers.attention import (
    Attention,
    AttentionConfig,
    RandomPositions,
    ReRoPE,
    RoPEScaling,
)
from retnet.ops import Layout
from retnet.ops.attention import AttentionState, StaticCache, WindowState
from retnet.ops.attention.blocks import QUERY_BLOCK
from support import kept_bytes

every_option = pytest.mark.parametrize(
    "given", TOKEN_CASES["attention"], ids=range(len(TOKEN_CASES["attention"]))
)


def text(B: int, T: int, seed: int = 0) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run(module: Any, x: Tensor, position: int = 0) -> Tensor:
    B, T = x.shape[:2]
    return module(x, None, Layout.of(B, T, position=torch.full((B,), position)))[0]


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def twin(module: Any, **changes: Any) -> Any:
    """Another layer with the same weights."""
    other = replace(module.config, **changes).build(D).double().eval()
    other.load_state_dict(module.state_dict(), strict=False)
    return other


RELATIVE = (
    {"position": "rope"},
    {"position": "alibi"},
    {"position": "kerple_power"},
    {"position": "kerple_log", "window": 3, "sinks": 1},
    {"position": "sandwich"},
    {"position": "xpos"},
    {"position": "general"},
    {"rerope": ReRoPE(window=3, slowdown=3.0)},
    {"scaling": RoPEScaling(kind="yarn", factor=4.0, original_len=32)},
    {"position": "none", "urpe": 2},
)


@pytest.mark.parametrize("options", RELATIVE, ids=str)
@given(offset=st.integers(1, 20_000))
@settings(max_examples=3, deadline=None)
def test_only_distances_matter(options: dict[str, Any], offset: int) -> None:
    """Also from one call to another, with what is kept in the state."""
    module, x = build("attention", {"num_heads": 2} | options), text(1, 7)
    if options.get("sinks"):
        module = twin(module, sinks=0)  # these are a place and not a distance
    torch.testing.assert_close(run(module, x, offset), run(module, x), rtol=1e-6, atol=1e-6)


def test_a_stack_of_windows_sees_as_far_as_it_should() -> None:
    """`(w - 1) l + 1` tokens, measured by the gradient."""
    window, layers, T = 5, 3, 20
    stack = [build("attention", {"num_heads": 3, "window": window}) for _ in range(layers)]
    x = text(1, T).requires_grad_()
    h = x
    for module in stack:
        h = h + run(module, h)
    h[0, -1].square().sum().backward()
    assert x.grad is not None
    seen = x.grad[0].abs().amax(-1) > 0
    assert seen.nonzero().min() == T - ((window - 1) * layers + 1)
    assert seen[T - ((window - 1) * layers + 1) :].all()


def test_the_window_of_a_trained_model_changes_nothing_up_to_its_length() -> None:
    module, x = build("attention", {"num_heads": 3}), text(2, 9)
    windowed = twin(module, window=6, sinks=2)
    close(run(windowed, x)[:, :6], run(module, x)[:, :6])
    close(run(twin(module, window=9), x), run(module, x))
    assert not torch.allclose(run(windowed, x)[:, -1], run(module, x)[:, -1])


def test_log_n_scales_by_the_visible_keys() -> None:
    module, x = build("attention", {"num_heads": 3}), text(1, 9)
    plain = run(module, x)
    always = run(twin(module, log_n="always", train_len=6), x)
    beyond = run(twin(module, log_n="beyond", train_len=6), x)
    close(always[:, 5], plain[:, 5])  # six keys
    close(beyond[:, :6], plain[:, :6])
    close(beyond[:, 6:], always[:, 6:])
    assert not torch.allclose(always[:, 2], plain[:, 2])
    sharper = twin(module)
    with torch.no_grad():
        sharper.q_proj.weight.mul_(math.log(9) / math.log(6))
    close(run(sharper, x)[:, 8], always[:, 8])
    near = twin(module, log_n="always", train_len=6, window=6)
    close(run(near, x)[:, 8], run(twin(module, window=6), x)[:, 8])  # six again


@pytest.mark.parametrize("scores", ["key_norm", "cosine"])
def test_lengths_of_keys_do_not_matter_when_they_are_normalised(scores: str) -> None:
    given = {"num_heads": 3, "scores": scores} | ({"train_len": 8} if scores == "cosine" else {})
    module, x = build("attention", given), text(1, 6)
    before = run(module, x)
    with torch.no_grad():
        module.k_proj.weight.mul_(7)  # type: ignore[union-attr, operator]
    close(run(module, x), before)
    with torch.no_grad():
        module.q_proj.weight.mul_(7)  # type: ignore[union-attr, operator]
    assert torch.allclose(run(module, x), before) == (scores == "cosine")


def test_cosine_scores_are_cosines_times_four_ln_of_the_training_length() -> None:
    module = build("attention", {"num_heads": 1, "scores": "cosine", "train_len": 50})
    module = twin(module, position="none")
    x = text(1, 2)
    q, k, v = (getattr(module, f"{n}_proj")(x) for n in "qkv")
    cosines = torch.cosine_similarity(q[0, 1:], k[0], dim=-1)
    p = (4 * math.log(50) * cosines).softmax(0)
    close(run(module, x)[0, 1], module.o_proj(p @ v[0]))


def test_weights_without_a_common_denominator_are_their_formulas() -> None:
    module, x = build("attention", {"num_heads": 1, "position": "none"}), text(1, 4)
    q, k, v = (getattr(module, f"{n}_proj")(x)[0] for n in "qkv")
    e = (q[-1] @ k.T / D**0.5).exp()
    for weights, p in (("exp", e), ("l2", e / e.square().sum().sqrt()), ("softmax", e / e.sum())):
        close(run(twin(module, weights=weights), x)[0, -1], module.o_proj(p @ v))  # type: ignore[operator]


PROBE: tuple[tuple[dict[str, Any], bool], ...] = (
    ({"position": "rope"}, False),
    ({"position": "alibi"}, False),
    ({"window": 4, "sinks": 1}, False),
    ({"log_n": "always", "train_len": 8}, False),
    ({"weights": "l2"}, True),
    ({"weights": "exp"}, True),
    ({"urpe": 6}, True),
)


@pytest.mark.parametrize(("options", "tells"), PROBE, ids=str)
def test_which_options_tell_positions_of_equal_tokens_apart(
    options: dict[str, Any], tells: bool
) -> None:
    """Where all values are equal, weights that sum to 1 give one answer everywhere."""
    module = build("attention", {"num_heads": 2} | options)
    y = run(module, text(1, 1).expand(1, 16, D))
    spread = ((y - y[:, :1]).abs().max() / y.abs().max()).item()
    assert spread > 1e-2 if tells else spread < 1e-12


def test_new_factors_of_distance_change_nothing() -> None:
    torch.manual_seed(0)
    module = AttentionConfig(num_heads=3, urpe=4).build(D).double()
    plain = twin(module, urpe=None)
    x = text(1, 9)
    close(run(module, x), run(plain, x))
    with torch.no_grad():
        module.urpe[:, -1] = 0  # type: ignore[index]
    changed = run(module, x)
    close(changed[:, :4], run(plain, x)[:, :4])  # no distance is as large
    assert not torch.allclose(changed[:, 4], run(plain, x)[:, 4])


@pytest.mark.parametrize("pairs", ["half", "interleaved"])
def test_a_new_general_rotation_is_rope(pairs: str) -> None:
    torch.manual_seed(0)
    given = {"num_heads": 6, "num_kv_heads": 3, "position": "general", "pairs": pairs}
    module: Any = config("attention", given).build(D)
    module, x = module.double(), text(2, 8)
    plain = twin(module, position="rope")
    torch.testing.assert_close(run(module, x, 50), run(plain, x, 50), rtol=1e-5, atol=1e-7)


def test_rerope_is_rope_within_its_window_and_keeps_keys_as_they_are() -> None:
    module, x = build("attention", {"num_heads": 3}), text(1, 9)
    shrunk = twin(module, rerope=ReRoPE(window=5))
    close(run(shrunk, x)[:, :5], run(module, x)[:, :5])
    close(run(twin(module, rerope=ReRoPE(window=2, slowdown=1.0)), x), run(module, x))
    assert not torch.allclose(run(shrunk, x)[:, -1], run(module, x)[:, -1])
    _, state = shrunk(x, None, Layout.of(1, 9))
    close(state.k.transpose(1, 2).flatten(2), module.k_proj(x))  # type: ignore[operator]


def test_interpolation_reads_positions_as_if_they_were_nearer() -> None:
    """Every third token of a text at a third of the speed: the positions of a short text."""
    module, x = build("attention", {"num_heads": 3}), text(1, 1)
    slow = twin(module, scaling=RoPEScaling(kind="linear", factor=3.0, original_len=8))
    _, near = module(x, None, Layout.of(1, 1, position=torch.tensor([4])))
    _, far = slow(x, None, Layout.of(1, 1, position=torch.tensor([12])))
    close(far.k, near.k)


def test_dynamic_scaling_begins_beyond_the_training_length_and_for_new_queries_alone() -> None:
    module, x = build("attention", {"num_heads": 3, "rope_base": 50.0}), text(1, 12)
    dynamic = twin(module, scaling=RoPEScaling(kind="dynamic", factor=2.0, original_len=4))
    y = run(dynamic, x)
    close(y[:, :4], run(module, x)[:, :4])
    of_eight = twin(module, scaling=RoPEScaling(kind="ntk", factor=3.0, original_len=4))
    close(y[:, 4:8], run(of_eight, x)[:, 4:8])  # 2 * 8 / 4 - 1
    of_twelve = twin(module, scaling=RoPEScaling(kind="ntk", factor=5.0, original_len=4))
    close(y[:, 8:], run(of_twelve, x)[:, 8:])


def test_xpos_goes_on_at_any_position_in_half_precision() -> None:
    module = build("attention", {"num_heads": 2, "position": "xpos"})
    exact, state = module(text(1, 3), None, Layout.of(1, 3, position=torch.tensor([40_000])))
    for dtype in (torch.float16, torch.bfloat16):
        y = run(twin(module).to(dtype), text(1, 3).to(dtype), 40_000)
        assert y.isfinite().all()
        assert (y - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(leaf.isfinite().all() for leaf in state)


RANDOM = (
    ({"position": "rope"}, RandomPositions(kind="subset", length=40)),
    ({"position": "rope"}, RandomPositions(kind="exponential")),
    ({"position": "alibi"}, RandomPositions(kind="exponential")),
    ({"position": "kerple_power", "window": 4}, RandomPositions(kind="subset", length=40)),
    ({"position": "general"}, RandomPositions(kind="subset", length=40)),
)


@pytest.mark.parametrize(("options", "random"), RANDOM, ids=str)
def test_positions_are_drawn_in_training_alone(
    options: dict[str, Any], random: RandomPositions
) -> None:
    module, x = build("attention", {"num_heads": 2} | options), text(2, 8)
    drawing = twin(module, random_positions=random)
    close(run(drawing, x), run(module, x))
    drawing.train()
    assert not torch.allclose(run(drawing, x), run(module, x))
    layout = Layout.of(2, 8)
    first, _ = drawing(x, None, layout)
    close(drawing(x, None, layout)[0], first)  # another layer of the same call
    assert not torch.allclose(drawing(x, None, Layout.of(2, 8))[0], first)
    later = text(2, 8)
    later[:, 5:] = 1.0
    close(drawing(later, None, layout)[0][:, :5], first[:, :5])
    with pytest.raises(ValueError, match="drawn for whole texts, and this call goes on from a st"):
        drawing(x, module(x, None, Layout.of(2, 8))[1], Layout.of(2, 8))


def test_drawn_positions_are_those_that_rotate() -> None:
    random = RandomPositions(kind="subset", length=8)  # all of them: nothing is left to chance
    module = build("attention", {"num_heads": 2})
    drawing, x = twin(module, random_positions=random).train(), text(1, 8)
    close(run(drawing, x), run(module, x))
    with pytest.raises(ValueError, match="9 tokens cannot have different positions below 8"):
        run(drawing, text(1, 9))


@every_option
@torch.no_grad()
def test_steps_of_every_option_are_its_whole_texts(given: dict[str, Any]) -> None:
    """From opened states where there are such, with rows at different places."""
    module, x = build("attention", given), text(2, 12)
    assert isinstance(module, Attention)
    lengths = torch.tensor([3, 5])
    valid = torch.arange(5) < lengths[:, None]
    _, state = module(x[:, :5], None, Layout.of(2, 5, valid=valid))
    opened = module.open_state(state, 4)
    outputs = []
    for t in range(4):
        rows = torch.stack([x[b, n + t] for b, n in enumerate(lengths.tolist())])[:, None]
        y, opened = module(rows, opened, Layout.of(2, 1, position=lengths + t))
        outputs.append(y)
    closed = module.close_state(opened)
    for b, n in enumerate(lengths.tolist()):
        want, after = module(x[b : b + 1, : n + 4], None, Layout.of(1, n + 4))
        close(torch.cat(outputs, 1)[b], want[0, n:])
        for got, exact in zip(closed, after, strict=True):
            close(got[b : b + 1, :, : exact.shape[2]], exact)


def test_what_is_opened_and_what_is_stepped_as_it_is() -> None:
    x, layout = text(1, 3), Layout.of(1, 3)
    kinds: list[tuple[dict[str, Any], type, type]] = [
        ({}, AttentionState, StaticCache),
        ({"position": "alibi"}, AttentionState, StaticCache),
        ({"position": "general", "scores": "key_norm"}, AttentionState, StaticCache),
        ({"window": 4}, WindowState, WindowState),
        ({"urpe": 2}, AttentionState, AttentionState),
        ({"position": "xpos"}, AttentionState, AttentionState),
        ({"rerope": ReRoPE(window=2)}, AttentionState, AttentionState),
    ]
    for options, plain, opened in kinds:
        module = build("attention", {"num_heads": 2} | options)
        assert isinstance(module, Attention)
        _, state = module(x, None, layout)
        assert type(state) is plain
        assert type(module.open_state(state, 4)) is opened  # type: ignore[arg-type]


@every_option
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_near(given: dict[str, Any], dtype: torch.dtype) -> None:
    module, x = build("attention", given), text(2, 20)
    exact = run(module, x)
    y = run(module.to(dtype), x.to(dtype))
    assert y.dtype == dtype
    assert (y - exact).abs().max() < 0.1 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        y = run(module.float(), x.float())
    assert (y - exact).abs().max() < 0.1 * exact.abs().max()


def test_what_is_learnt_of_positions_keeps_its_digits() -> None:
    for position in ("general", "kerple_log", "kerple_power"):
        module: Any = config("attention", {"num_heads": 2, "position": position}).build(D)
        module = module.bfloat16()
        learnt = dict(module.position.named_parameters())
        assert learnt
        assert all(p.dtype == torch.float32 for p in learnt.values())


def test_biases_of_queries_and_keys_alone() -> None:
    module = AttentionConfig(num_heads=2, qk_bias=True).build(D)
    assert module.q_proj.bias is not None
    assert module.k_proj.bias is not None
    assert module.v_proj.bias is None
    assert module.o_proj.bias is None
    x = text(1, 1).float()
    want = run(module.eval(), x)
    with torch.no_grad():
        module.pack("float32")
        torch.testing.assert_close(run(module, x), want)


def test_heads_may_have_a_size_of_their_own() -> None:
    module = AttentionConfig(num_heads=3, head_size=10).build(D)
    assert module.q_proj.weight.shape == (30, D)
    assert module.o_proj.weight.shape == (D, 30)
    assert AttentionConfig(num_heads=5, head_size=2).build(D).D_k == 2


def test_one_head_with_alibi_is_built_and_said_to_be_few(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        AttentionConfig(num_heads=1, position="alibi").build(D)
    assert "works by slopes that differ between heads" in caplog.text


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"head_size": 0}, r"head_size \(0\) must be at least 1; 64 is usual"),
    ({"bias": True, "qk_bias": True}, "leave out one of bias and qk_bias"),
    ({"window": 0}, r"window \(0\) must be at least 1, the query's own key; leave it out"),
    ({"sinks": 2}, r"sinks \(2\) stay visible beyond a window, and window is None; set both"),
    ({"window": 3, "sinks": -1}, r"sinks \(-1\) stay visible"),
    ({"log_n": "always"}, r"train_len \(None\) must be at least 2 for scores = \"cosine\""),
    ({"scores": "cosine", "train_len": 1}, r"train_len \(1\) must be at least 2"),
    ({"train_len": 64}, r"train_len \(64\) is read by scores = \"cosine\" and log_n alone"),
    ({"urpe": 0}, r"urpe \(0\) must be at least 1, a distance; 128 is usual"),
    (
        {"position": "alibi", "rerope": ReRoPE(window=3)},
        'rerope changes the rotation of position = "rope", and position is "alibi"',
    ),
    ({"rerope": ReRoPE(window=3), "window": 5}, "are rival ways to read longer texts"),
    (
        {"position": "none", "random_positions": RandomPositions(kind="exponential")},
        'random_positions do not go with position = "none"',
    ),
    (
        {"position": "general", "random_positions": RandomPositions(kind="exponential")},
        'need whole positions; use random_positions of kind "subset"',
    ),
)


@pytest.mark.parametrize(("options", "match"), REFUSED, ids=range(len(REFUSED)))
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config("attention", {"num_heads": 2} | options)


def test_parts_of_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"window \(0\) must be at least 1; a quarter of train_len"
    ):
        ReRoPE(window=0)
    with pytest.raises(ValueError, match=r"slowdown \(0.5\) must be at least 1; 1 is plain RoPE"):
        ReRoPE(window=4, slowdown=0.5)
    with pytest.raises(ValueError, match=r"length \(None\) goes with kind \"subset\", and kind is"):
        RandomPositions(kind="subset")
    with pytest.raises(
        ValueError, match=r"length \(9\) goes with kind \"subset\", and kind is \"e"
    ):
        RandomPositions(kind="exponential", length=9)
    with pytest.raises(ValueError, match=r"length \(0\) must be at least 1; 2048 is usual"):
        RandomPositions(kind="subset", length=0)
    with pytest.raises(ValueError, match=r"head_size \(5\) must be even, because channels rotate"):
        AttentionConfig(num_heads=2, head_size=5).build(D)


def test_layers_with_other_pairs_do_not_share_what_dynamic_scaling_turns_by() -> None:
    """Both are read in one call, as in a stack, with one layout."""
    scaling = RoPEScaling(kind="dynamic", factor=2.0, original_len=3)
    x, layout = torch.randn(1, 9, D).double(), Layout.of(1, 9)
    for pairs in ("half", "interleaved"):
        layer = build("attention", {"num_heads": 3, "scaling": scaling, "pairs": pairs})
        y, _ = layer(x, None, layout)
        torch.testing.assert_close(y, layer(x, None, Layout.of(1, 9))[0])


@pytest.mark.parametrize(
    "options", [{"position": "kerple_log"}, {"weights": "l2"}, {"urpe": 4, "num_kv_heads": 1}]
)
def test_memory_of_training_does_not_grow_with_the_square_of_the_text(
    options: dict[str, Any],
) -> None:
    """And the gradients are those of a text that is short enough to keep everything."""
    layer = build("attention", {"num_heads": 2} | options)

    def gradients(rows: Tensor) -> dict[str, Tensor]:
        layer.zero_grad()
        y, _ = layer(rows, None, Layout.of(*rows.shape[:2]))
        y.square().sum().backward()
        return {name: p.grad.clone() for name, p in layer.named_parameters()}  # type: ignore[union-attr]

    def kept(T: int) -> int:
        x, layout = torch.randn(1, T, D).double(), Layout.of(1, T)
        return sum(kept_bytes(lambda: layer(x, None, layout)).values())

    assert kept(2048) < 2.2 * kept(1024)
    x = torch.randn(1, QUERY_BLOCK + 9, D).double()
    want = None
    for size in (QUERY_BLOCK, len(x[0])):  # blocks that are computed again, and one that is not
        with pytest.MonkeyPatch.context() as patch:
            for module in ("retnet.ops.attention", "retnet.ops.attention.blocks"):
                patch.setattr(sys.modules[module], "QUERY_BLOCK", size)
            got = gradients(x)
        for name, grad in (want or got).items():
            torch.testing.assert_close(got[name], grad)
        want = got
