"""What a client can send that must not end the engine, or keep everybody waiting."""

from typing import Any

import pytest
import torch

from retnet.data import Tokenizer
from retnet.hub import from_dict
from retnet.model import Decoder, DecoderConfig, DecoderState
from retnet.model.state import state_tensors, with_tensors
from retnet.serve.engine import Engine, EngineConfig, ErrorEvent, FinishEvent, Request


def engine_of(**mixer: Any) -> Engine:
    torch.manual_seed(0)
    layer = {"mixer": mixer, "channel": {"name": "glu", "width": 8}}
    config = {"d_model": 16, "layers": [layer], "vocab_size": 257}
    model = Decoder(from_dict(DecoderConfig, config)).eval()
    return Engine(model, Tokenizer.bytes(), EngineConfig(max_running=2))


def finished(engine: Engine, state: DecoderState | None, **changes: Any) -> Any:
    engine.submit(Request(prompt=(65, 66), state=state, max_tokens=3, keep_state=True, **changes))
    events = []
    while engine.busy:
        events += engine.step()
    return events[-1]


@pytest.mark.parametrize(
    "mixer",
    [
        {"name": "attention", "num_heads": 2},
        {"name": "attention", "num_heads": 2, "window": 4},
        {"name": "gau"},
        {"name": "hyena"},
    ],
    ids=str,
)
def test_a_state_whose_slots_are_not_its_tokens_is_refused_before_the_engine_reads_it(
    mixer: dict[str, Any],
) -> None:
    """A forged position made a step read slots that were not there, which ended the engine."""
    engine = engine_of(**mixer)
    state = finished(engine, None).state
    again = finished(engine, state).state  # the engine's own are right
    assert isinstance(finished(engine, again), FinishEvent)
    wrong = [state._replace(position=torch.tensor([n])) for n in (1, 3000)]
    for name, axis in engine._size.growing.items():
        leaf = state_tensors(state)[name]
        longer = torch.cat([leaf, leaf], axis)
        wrong.append(with_tensors(state, {**state_tensors(state), name: longer}))
    if engine._size.growing:
        for forged in wrong:
            with pytest.raises(ValueError, match="the state is of another model"):
                engine.submit(Request(prompt=(65,), state=forged, max_tokens=3))
    else:
        assert isinstance(finished(engine, wrong[1]), FinishEvent)


def test_a_grammar_that_cannot_be_followed_fails_and_is_no_end() -> None:
    """A text that llguidance gave up on ended with `stop`, though it did not match."""
    engine = engine_of(name="retention", num_heads=2)
    grammar = engine.grammars.regex("(a{1000}){1000}")
    event = finished(engine, None, grammar=grammar)
    assert isinstance(event, ErrorEvent)
    assert "grammar" in event.message
