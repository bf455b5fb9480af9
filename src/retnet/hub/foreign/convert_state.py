"""Decode states of other programs: a text that is half written moves over."""

from typing import Any

from retnet.hub.foreign.formats import FORMATS, format_named
from retnet.model import DecoderConfig


def convert_state(
    state: Any,
    config: DecoderConfig,
    *,
    source: str = "retnet",
    target: str = "retnet",
    position: int | None = None,
) -> Any:
    """A decode state in another program's form.

    Args:
        state: a `DecoderState` if `source` is "retnet", else what that program keeps.
        config: of the model, as it was converted.
        source: name of the state's format.
        target: name of the format wanted.
        position: how many tokens were read, where the source's state does not say.

    Raises:
        ValueError: a format is unknown or has no states, or the state is not this model's.

    Example:
        >>> state = convert_state(  # doctest: +SKIP
        ...     incremental_state, model.config, source="torchscale", position=tokens.shape[1]
        ... )
        >>> logits, state = model(next_token, state)  # doctest: +SKIP
    """
    for name in (source, target):
        if name != "retnet" and format_named(name).states is None:
            have = ", ".join(name for name, format_ in FORMATS.items() if format_.states)
            raise ValueError(f"states of {name} are not converted; there are retnet, {have}")
    ours = state
    if source != "retnet":
        states = FORMATS[source].states
        assert states is not None
        ours = states.to_ours(state, config, position)
    if target == "retnet":
        return ours
    states = FORMATS[target].states
    assert states is not None
    return states.to_theirs(ours, config)
