"""Options from dataclasses: what the commands that write text share, and one way to parse."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import tyro
from tyro.conf import Positional, arg

if TYPE_CHECKING:
    from retnet.model import Decoder
    from retnet.model.sampling import Sampling

Options = TypeVar("Options")

Checkpoint = Annotated[Positional[str], arg(metavar="CHECKPOINT")]
"""The folder that a command reads its model from."""

Adapter = Annotated[str, arg(metavar="PATH", help="A fine-tuned adapter of it.")]
"""A second one, that changes the first; empty for none."""

WeightsChoice = Annotated[
    Literal["saved", "float32", "bfloat16", "int8"],
    arg(metavar="KIND", help="saved, float32, bfloat16 or int8."),
]
"""How a command that writes text keeps the model's weights."""


def packed(model: "Decoder", weights: str) -> "Decoder":
    """The model, with its weights as was asked for."""
    from retnet.model.steps import pack

    return model if weights == "saved" else pack(model, weights)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How to choose tokens; the fields of `retnet.model.sampling.Sampling`, which explains them.

    They are repeated here because that class needs torch, and help does not. The defaults are for
    reading pleasure: the library's own draw from the model's plain distribution.
    """

    temperature: Annotated[float, arg(metavar="X")] = 0.8
    """Below 1 safer, above 1 wilder; 0: the likeliest token."""
    top_k: Annotated[int, arg(metavar="N")] = 0
    """Keep the N likeliest tokens; 0: off."""
    top_p: Annotated[float, arg(metavar="X")] = 0.95
    """Keep the likeliest that reach probability X; 1: off."""
    min_p: Annotated[float, arg(metavar="X")] = 0.0
    """Drop those below X times the likeliest; 0: off."""
    repetition_penalty: Annotated[float, arg(metavar="X")] = 1.0
    """Above 1 discourages repetition; 1: off."""
    presence_penalty: Annotated[float, arg(metavar="X")] = 0.0
    """Subtracted from repeats; 0: off."""
    frequency_penalty: Annotated[float, arg(metavar="X")] = 0.0
    """The same, once for each time; 0: off."""
    seed: Annotated[int | None, arg(metavar="N")] = None
    """Makes the text repeatable."""

    def sampling(self) -> "Sampling":
        """Return the library's settings.

        Raises:
            ValueError: a value is outside its range.
        """
        from retnet.model.sampling import Sampling

        return Sampling(**asdict(self))


def parse(options: type[Options], command: str, words: Sequence[str], about: str) -> Options:
    """Read the words after a command; `--help` and mistakes print and exit.

    Args:
        options: a dataclass.
        command: its name.
        words: what to read.
        about: shown above the options: what the command does, and an example.
    """
    return tyro.cli(
        options,
        prog=f"retnet {command}",
        description=about.strip(),
        args=list(words),
        config=(tyro.conf.OmitArgPrefixes,),
    )
