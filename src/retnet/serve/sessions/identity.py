"""Whose states these are: a model's fingerprint, and what its states look like."""

import hashlib
import json
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.hub import to_dict
from retnet.hub.adapter import fingerprint
from retnet.model import Decoder, DecoderState
from retnet.model.decoding import prefill
from retnet.model.state import state_tensors, with_tensors
from retnet.serve.sessions.errors import SessionRefused

LENGTHS = (1, 2)
"""Tokens of two states; an axis that differs between them grows with the text."""


class Identity(NamedTuple):
    """What a state must fit.

    Attributes:
        fingerprint: of config and weights.
        config: of the config alone, to say what is different.
        template: a state of one row, whose tensors are replaced by those of a file.
        shapes: of each tensor; None stands for an axis that grows with the text.
        vocab_size: of the logits.
    """

    fingerprint: str
    config: str
    template: DecoderState
    shapes: dict[str, tuple[int | None, ...]]
    vocab_size: int

    def state_of(self, tensors: dict[str, Tensor], what: str) -> DecoderState:
        """The state that these tensors are.

        Args:
            tensors: those of `state_tensors`.
            what: names their source in the message.

        Raises:
            SessionRefused: names, shapes or dtypes are not those of this model's states.
        """
        want = state_tensors(self.template)
        if tensors.keys() != want.keys():
            odd = sorted(tensors.keys() ^ want.keys())
            raise SessionRefused(
                f"{what} has other tensors than a state of this model: {odd[:3]}; {REMEDY}"
            )
        for name, tensor in tensors.items():
            shape = self.shapes[name]
            fits = len(shape) == tensor.ndim and all(
                size is None or size == have for size, have in zip(shape, tensor.shape, strict=True)
            )
            if not fits or tensor.dtype != want[name].dtype:
                raise SessionRefused(
                    f"{what} has {name} {tensor.dtype} {tuple(tensor.shape)}, and this model "
                    f"{want[name].dtype} {tuple(shape)}; {REMEDY}"
                )
        return with_tensors(self.template, tensors)


REMEDY = "give a session that this model wrote"


def identify(model: Decoder) -> Identity:
    """Read the weights once, from memory, and run the model on two tokens.

    Do this before `retnet.model.pack`: a state goes on with the same weights in another packing.
    Anything that changes the weights, such as an adapter or another dtype, makes another model.
    """
    text = json.dumps(to_dict(model.config), sort_keys=True)
    config = hashlib.sha256(text.encode()).hexdigest()[:32]
    whole = hashlib.sha256(f"{config} {fingerprint(model)}".encode()).hexdigest()[:32]
    device = next(model.parameters()).device
    short, longer = (
        prefill(model, torch.zeros(1, length, dtype=torch.int64, device=device))[1]
        for length in LENGTHS
    )
    template = with_tensors(short, {n: t.cpu().clone() for n, t in state_tensors(short).items()})
    others = state_tensors(longer)
    shapes = {
        name: tuple(
            size if size == other else None
            for size, other in zip(tensor.shape, others[name].shape, strict=True)
        )
        for name, tensor in state_tensors(template).items()
    }
    return Identity(whole, config, template, shapes, model.config.vocab_size)
