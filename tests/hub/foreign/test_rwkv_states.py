"""States of RWKV-4: a text that was begun in one program goes on in another."""

import pytest
import torch
from torch import Tensor

from golden_files import golden
from hub.foreign.shared import converted
from hub.foreign.test_rwkv import in_transformers
from retnet.hub.foreign import convert_state
from retnet.model import Decoder, DecoderState, concat_rows, select_rows
from retnet.ops.wkv import to_scaled_sums
from retnet.ops.wkv.states import WKVState

GOLDEN = golden("rwkv4")
SPLIT = int(GOLDEN.arrays["in.split"])
L = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Decoder:
    return converted(tmp_path_factory.mktemp("rwkv"), "rwkv4")


def of_rows(states: list[DecoderState]) -> DecoderState:
    return concat_rows(states)


def assert_goes_on(model: Decoder, state: DecoderState) -> None:
    """The rest of the golden text, in one piece and then token by token."""
    tokens, want = GOLDEN.tokens()[:, SPLIT:], GOLDEN.arrays["out.logits_pip"][:, SPLIT:]
    logits, _ = model(tokens, state)
    assert (logits - want).abs().max() <= GOLDEN.tol["logits_pip"]
    for at in range(4):
        logits, state = model(tokens[:, at : at + 1], state)
        assert (logits[:, 0] - want[:, at]).abs().max() <= GOLDEN.tol["logits_pip"]


def assert_invariant(state: DecoderState, name: str) -> None:
    """Compare ffn_x, att_x, a / b and log b with those of the golden file."""
    for layer, (time, channel) in enumerate(state.layers):
        ours = torch.stack([channel.shift, time.shift, time.mean, time.log_mass], 1)
        error = (ours - GOLDEN.arrays[f"out.{name}"][:, layer]).abs().max()
        assert error <= GOLDEN.tol[name], (layer, error)


def test_state_of_blinkdl_and_rwkv_cpp_goes_on_here(model):
    rows = GOLDEN.arrays["out.state_pip_at_split"].flatten(1, 2)  # B 5L D
    states = [
        convert_state(row, model.config, source="rwkv-cpp", position=SPLIT)
        for row in (rows[0], rows[1].flatten())  # as a matrix and as numbers
    ]
    state = of_rows(states)
    assert state.position.tolist() == [SPLIT, SPLIT]
    assert_invariant(state, "state_invariant_at_split")
    assert_goes_on(model, state)


def test_state_of_pip_goes_on_here(model):
    by_layer = GOLDEN.arrays["out.state_pip_at_split"][:, :, [1, 2, 3, 4, 0]]  # their order
    states = [
        convert_state(list(row.flatten(0, 1)), model.config, source="rwkv4") for row in by_layer
    ]
    assert states[0].position.tolist() == [1]  # they do not count; it was read from
    assert_goes_on(model, of_rows(states))
    ends = [list(row) for row in GOLDEN.arrays["out.raw_state_pip"]]
    states = [convert_state(end, model.config, source="rwkv4") for end in ends]
    assert_invariant(of_rows(states), "state_invariant")


def test_state_of_transformers_goes_on_here_and_ours_there(model):
    raw = list(GOLDEN.arrays["out.raw_state_hf"])
    state = convert_state(raw, model.config, source="rwkv-hf", position=48)
    assert_invariant(state, "state_invariant")
    theirs, tokens = in_transformers(), GOLDEN.tokens()
    _, state = model(tokens[:, :SPLIT])
    begun = convert_state(state, model.config, target="rwkv-hf")
    logits = theirs(tokens[:, SPLIT:], state=begun, use_cache=True).logits
    want = GOLDEN.arrays["out.logits_hf"][:, SPLIT:]
    assert (logits - want).abs().max() <= GOLDEN.tol["logits_hf"]


@pytest.mark.parametrize("name", ["rwkv4", "rwkv-cpp", "rwkv-hf"])
def test_our_state_comes_back(model, name):
    _, state = model(GOLDEN.tokens()[:1, :SPLIT])
    there = convert_state(state, model.config, target=name)
    back = convert_state(there, model.config, source=name, position=SPLIT)
    assert torch.equal(back.position, state.position)
    for layer, other in zip(state.layers, back.layers, strict=True):
        for leaf, again in zip((*layer[0], *layer[1]), (*other[0], *other[1]), strict=True):
            torch.testing.assert_close(again, leaf, rtol=0, atol=0)


def test_fresh_state_is_theirs_and_comes_back_fresh(model):
    _, state = model(GOLDEN.tokens()[:1, :1])
    zeros = [tuple(type(s)(*map(torch.zeros_like, s)) for s in layer) for layer in state.layers]
    fresh = DecoderState(torch.zeros(1, dtype=torch.int64), tuple(zeros))
    rows = convert_state(fresh, model.config, target="rwkv-cpp")
    assert rows.shape == (5 * L, 40)
    assert torch.equal(rows[4::5], torch.full((L, 40), -1e30))
    assert not rows.view(L, 5, 40)[:, :4].any()
    back = convert_state(rows, model.config, source="rwkv-cpp", position=7)
    assert back.position.tolist() == [0]
    assert not any(leaf.any() for layer in back.layers for part in layer for leaf in part)


def test_sums_of_any_scale_are_the_same_state(model):
    """Programs divide by another pp each: only a / b and log b count."""
    _, state = model(GOLDEN.tokens()[:1, :SPLIT])
    rows = convert_state(state, model.config, target="rwkv-cpp").view(L, 5, 40)

    def scaled(by: float) -> Tensor:
        other = rows.clone()
        other[:, 2:4] *= by
        other[:, 4] -= torch.tensor(by).log()
        return other.flatten(0, 1)

    back = convert_state(scaled(3.0), model.config, source="rwkv-cpp")
    for layer, other in zip(state.layers, back.layers, strict=True):
        for leaf, again in zip(layer[0], other[0], strict=True):
            torch.testing.assert_close(again, leaf, rtol=1e-5, atol=1e-5)
    some = state.layers[0][0]
    assert torch.equal(to_scaled_sums(WKVState(*some[1:]))[0], some.mean)


def test_states_of_another_model_or_of_several_texts_are_refused(model):
    _, state = model(GOLDEN.tokens()[:, :3])
    config = model.config
    for name in ("rwkv4", "rwkv-cpp"):
        with pytest.raises(ValueError, match="the state has 2 rows, and theirs is of one text"):
            convert_state(state, config, target=name)
    one = select_rows(state, [0])
    rows = convert_state(one, config, target="rwkv-cpp")
    with pytest.raises(ValueError, match="the state has 10 rows; it must have 15, five for each"):
        convert_state(rows[:10], config, source="rwkv-cpp")
    with pytest.raises(ValueError, match="the state has 14 vectors; it must have 15"):
        convert_state(list(rows[:14]), config, source="rwkv4")
    theirs = convert_state(state, config, target="rwkv-hf")
    with pytest.raises(ValueError, match=r"the state has 5 tensors, of \[2, 2, 2, 2, 2\] layers"):
        convert_state([x[..., :2] for x in theirs], config, source="rwkv-hf")
