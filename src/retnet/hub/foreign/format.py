"""What a format of checkpoints is to `retnet convert`: functions, and no class to inherit from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retnet.hub.foreign.answers import Answers
from retnet.hub.foreign.rules import Rule
from retnet.hub.foreign.tensors import Entry, Source
from retnet.hub.foreign.writers import Writer, save_safetensors
from retnet.model import DecoderConfig, DecoderState


class Translation(NamedTuple):
    """A model in our words and in theirs.

    Attributes:
        decoder: in ours.
        rules: which tensor is which.
        config: the contents of their config.json, for exports; empty where they have none.
        derived: tensors of theirs that are no parameters, such as tables of angles. An import has
            compared them with what they should be; an export writes them.
    """

    decoder: DecoderConfig
    rules: tuple[Rule, ...]
    config: Mapping[str, Any] = {}
    derived: Mapping[str, Tensor] = {}


class States(NamedTuple):
    """Decode states, so that a text that was begun there goes on here, and back.

    Attributes:
        to_ours: their state (nested dictionaries and lists of tensors), the model's config, and how
            many tokens were read (None if their state says so itself) to ours.
        to_theirs: the way back.
    """

    to_ours: Callable[[Any, DecoderConfig, int | None], DecoderState]
    to_theirs: Callable[[DecoderState, DecoderConfig], Any]


def _as_wanted(name: str, entry: Entry) -> torch.dtype:  # noqa: ARG001
    return entry.dtype


@dataclass(frozen=True, kw_only=True)
class Format:
    """How somebody else writes the models that a `Decoder` can be.

    Attributes:
        name: the word for it on the command line.
        title: a line that says whose it is.
        recognise: by names and config: its version in words, or None if it is not this format.
        describe: import: asks for what the weights do not say.
        express: export: refuses by name what the format cannot say.
        file: the name of the weights in an exported folder.
        save: writes them.
        dtype_of: in which dtype it writes a tensor of a name, shape and wanted dtype.
        states: decode states; None if the format has none.
        tokenizers: those that published models have, by the size of their vocabulary.
    """

    name: str
    title: str
    recognise: Callable[[Source], str | None]
    describe: Callable[[Source, Answers], Translation]
    express: Callable[[DecoderConfig, Answers], Translation]
    file: str = "model.safetensors"
    save: Writer = field(default=save_safetensors)
    dtype_of: Callable[[str, Entry], torch.dtype] = field(default=_as_wanted)
    states: States | None = None
    tokenizers: Mapping[int, str] = field(default_factory=dict)
