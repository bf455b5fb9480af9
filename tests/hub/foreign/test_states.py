"""Decode states: a text that was begun in another program goes on here, and back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden_files import Golden, golden
from hub.foreign.shared import converted
from model.golden_mapping import FLA, SYNCDOTH, TORCHSCALE
from model.small import close, config, decoder, same_states, tokens
from retnet.hub.foreign import convert_state
from retnet.model import Decoder, DecoderState

FORMAT: dict[str, str] = {
    **dict.fromkeys(TORCHSCALE, "torchscale"),
    **dict.fromkeys(FLA, "fla"),
}
EXACT = torch.float64


def stored(file: Golden, num_layers: int, kind: str) -> Any:
    """The state after the last token, as the program keeps it, in float64."""

    def field(layer: int, name: str) -> Tensor:
        return file.arrays[f"out64.state{layer}{name}"]

    if kind == "fla":
        return [{"recurrent_state": field(i, "")} for i in range(num_layers)]
    layers = [
        {name: field(i, f"_{name}") for name in ("prev_key_value", "scale")}
        for i in range(num_layers)
    ]
    return layers if kind == "syncdoth" else dict(enumerate(layers))


def read(model: Decoder, text: Tensor, state: DecoderState | None = None) -> Any:
    with torch.no_grad():
        return model(text, state)


@pytest.mark.parametrize("name", FORMAT)
def test_a_text_that_was_begun_there_goes_on_here(name: str, tmp_path: Path) -> None:
    """Their state after the last token, then ten more: as if we had read it all."""
    file, model = golden(name), converted(tmp_path, name).to(EXACT)
    text, more = file.tokens(), tokens(2, 10, vocab_size=80)
    theirs = stored(file, model.config.num_layers, FORMAT[name])
    state = convert_state(theirs, model.config, source=FORMAT[name], position=text.shape[1])
    _, want = read(model, text)
    same_states(state, want, 1e-9)
    logits, _ = read(model, more, state)
    close(logits, read(model, torch.cat([text, more], 1))[0][:, text.shape[1] :], 1e-8)


@pytest.mark.parametrize("name", FORMAT)
def test_our_state_is_theirs_there(name: str, tmp_path: Path) -> None:
    file, model = golden(name), converted(tmp_path, name).to(EXACT)
    _, state = read(model, file.tokens())
    got = convert_state(state, model.config, target=FORMAT[name])
    want = stored(file, model.config.num_layers, FORMAT[name])
    for layer in range(model.config.num_layers):
        assert got[layer].keys() == want[layer].keys()
        for key in want[layer]:
            close(got[layer][key], want[layer][key], 1e-9)


@pytest.mark.parametrize("name", SYNCDOTH)
def test_states_of_syncdoths_parallel_pass_convert(name: str, tmp_path: Path) -> None:
    file = golden(name)
    model = converted(tmp_path, name, score_norm="torchscale").to(EXACT)
    theirs = stored(file, model.config.num_layers, "syncdoth")
    _, want = read(model, file.tokens())
    position = file.tokens().shape[1]
    state = convert_state(theirs, model.config, source="syncdoth", position=position)
    same_states(state, want, 1e-9)
    back = convert_state(state, model.config, target="syncdoth")
    for got, layer in zip(back, theirs, strict=True):
        for key in layer:
            close(got[key], layer[key], 1e-9)


@pytest.mark.parametrize("name", [*FORMAT, *SYNCDOTH])
def test_half_a_text_moves_through_their_state_and_on(name: str, tmp_path: Path) -> None:
    """Prefill, convert to theirs and back, decode: the logits that they give."""
    kind = FORMAT.get(name, "syncdoth")
    file, model = golden(name), converted(tmp_path, name).to(EXACT)
    text, split = file.tokens(), file.tokens().shape[1] // 2
    _, state = read(model, text[:, :split])
    theirs = convert_state(state, model.config, target=kind)
    state = convert_state(theirs, model.config, source=kind, position=split)
    parts = []
    for n in range(split, text.shape[1]):
        logits, state = read(model, text[:, n : n + 1], state)
        parts.append(logits)
    want = file.arrays["out64.logits" if kind == "fla" else "out64.logits_recurrent"]
    close(torch.cat(parts, 1), want[:, split:], 1e-9)


@pytest.mark.parametrize("target", ["torchscale", "fla"])
def test_states_follow_the_order_of_rotating_pairs(target: str) -> None:
    """Ours rotates halves, torchscale neighbours: channels of the state change places."""
    halves = decoder(config({"theta": "rope", "pairs": "half"}))
    neighbours = decoder(config({"theta": "rope", "pairs": "interleaved"}))
    # the same model in the other order of channels
    neighbours.load_state_dict(
        {
            name: x.unflatten(0, (4, 2, -1)).transpose(1, 2).flatten(0, 2)
            if name.endswith(("q_proj.weight", "k_proj.weight"))
            else x
            for name, x in halves.state_dict().items()
        }
    )
    text = tokens(2, 7)
    logits, state = read(halves, text)
    close(read(neighbours, text)[0], logits)
    theirs = convert_state(state, halves.config, target=target)
    moved = convert_state(theirs, neighbours.config, source=target, position=7)
    same_states(moved, read(neighbours, text)[1])


def test_float32_states_stay_float32(tmp_path: Path) -> None:
    model = converted(tmp_path, "torchscale_base")
    _, state = read(model, golden("torchscale_base").tokens())
    theirs = convert_state(state, model.config, target="torchscale")
    assert {x.dtype for layer in theirs.values() for x in layer.values()} == {torch.float32}
    position = golden("torchscale_base").tokens().shape[1]
    back = convert_state(theirs, model.config, source="torchscale", position=position)
    same_states(back, state, 1e-6)


def test_what_programs_keep_beside_the_layers_is_left_alone(tmp_path: Path) -> None:
    """torchscale's decoder puts "is_first_step" into the same dictionary."""
    model = converted(tmp_path, "torchscale_base")
    text = golden("torchscale_base").tokens()
    theirs = convert_state(read(model, text)[1], model.config, target="torchscale")
    theirs["is_first_step"] = False
    convert_state(theirs, model.config, source="torchscale", position=text.shape[1])


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = converted(tmp_path, "torchscale_base")
    text = golden("torchscale_base").tokens()
    _, state = read(model, text)
    theirs = convert_state(state, model.config, target="torchscale")
    with pytest.raises(ValueError, match="does not say how many tokens it has read"):
        convert_state(theirs, model.config, source="torchscale")
    with pytest.raises(ValueError, match=r"position \(9\) does not fit the state"):
        convert_state(theirs, model.config, source="torchscale", position=9)
    layers = {0: theirs[0], 1: theirs[1]}
    with pytest.raises(ValueError, match="the state has 2 layers and the model 3"):
        convert_state(layers, model.config, source="torchscale", position=45)
    uneven = state._replace(position=torch.tensor([45, 44]))
    with pytest.raises(ValueError, match=r"rows have read \[44, 45\] tokens"):
        convert_state(uneven, model.config, target="torchscale")
    with pytest.raises(ValueError, match="give position, what the cache"):
        convert_state([], model.config, source="fla")
    with pytest.raises(ValueError, match='no format "gguf"'):
        convert_state(state, model.config, target="gguf")
