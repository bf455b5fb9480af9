"""Our decoder in each role; with softmax attention in place of retention it is a peer too."""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.bench.peers.roles import GreedySteps, Opened, Prefiller, Speaker, Trainee
from retnet.model import Decoder, DecoderConfig, DecoderState, Sampling, select_rows, state_bytes
from retnet.model.compiled_steps import MAX_ROWS
from retnet.model.decoding import Decoding, prefill
from retnet.model.scoring import score
from retnet.model.steps import Kernels, open_state, pack
from retnet.ops.packed_linear import INT8_ROWS, Weights

OURS = "retnet"
WITHOUT_NUMBA = f"{OURS} without Numba"
ReadTexts = Callable[[int], tuple[Tensor, DecoderState]]
"""From a number of tokens to the logits after them, (1, V), and the state there."""

GREEDY = Sampling(temperature=0.0)


def fresh(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> Decoder:
    """A decoder with the same new weights every time."""
    torch.manual_seed(0)
    return Decoder(config).to(dtype)


def trainee_of(model: Decoder, by: str = OURS) -> Trainee:
    """Trained as `retnet train` does, on rows of one document each."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        return score(model, inputs, targets).nats / targets.numel()

    return Trainee(by, model, loss)


def prefiller_of(model: Decoder, by: str = OURS) -> Prefiller:
    """Reads a prompt in chunks, as `retnet generate` does."""

    kept = 0

    def read(tokens: Tensor) -> Tensor:
        nonlocal kept
        logits, state = prefill(model, tokens)
        kept = state_bytes(state)
        return logits[0]

    return Prefiller(by, _dtype(model), model.num_parameters(), read, lambda: kept)


def speaker_of(
    model: Decoder,
    texts: "ReadTexts",
    weights: Weights = "float32",
    by: str = OURS,
    kernels: Kernels = "torch",
) -> Speaker:
    """Decodes as `retnet generate` does.

    Args:
        model: plain, in any dtype; it is packed.
        texts: gives the logits and the state, of one row, after so many tokens.
        weights: how they are kept for steps.
        by: its name.
        kernels: who computes its steps.
    """
    packed = pack(model, weights, kernels)

    def open_(context: int, rows: int, steps: int) -> Opened:
        logits, state = texts(context)
        logits, state = logits.expand(rows, -1), select_rows(state, [0] * rows)
        size = model.num_parameters() * bytes_per_weight(weights, rows, kernels)
        if by in (OURS, WITHOUT_NUMBA):
            return Opened(Decoding(packed, logits, state, GREEDY), state_bytes(state), size)
        opened = open_state(packed, state, steps)  # a cache that never has to grow

        @torch.inference_mode()
        def step(tokens: Tensor) -> Tensor:
            nonlocal opened
            logits, opened = packed(tokens[:, None], opened)
            return logits[:, 0]

        return Opened(GreedySteps(step, logits), state_bytes(state), size)

    return Speaker(by, weights, model.num_parameters(), open_)


def bytes_per_weight(weights: Weights, rows: int, kernels: Kernels) -> int:
    """Bytes that a token of so many rows reads of each weight."""
    int8_rows = INT8_ROWS if kernels == "torch" else MAX_ROWS
    return {"float32": 4, "bfloat16": 2, "int8": 1 if rows <= int8_rows else 2}[weights]


class Texts:
    """A random text, read on as far as it was asked for; remembers where it was asked.

    States are float32 whatever the weights are, so that decoders of several dtypes can go on from
    one reading.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._reached: dict[int, tuple[Tensor, DecoderState]] = {}

    def __call__(self, num_tokens: int) -> tuple[Tensor, DecoderState]:
        """Logits after so many tokens, and the state there."""
        if num_tokens not in self._reached:
            begin = max((n for n in self._reached if n < num_tokens), default=0)
            state = self._reached[begin][1] if begin else None
            random = torch.Generator().manual_seed(begin)
            more = torch.randint(
                self._model.config.vocab_size, (1, num_tokens - begin), generator=random
            )
            self._reached[num_tokens] = prefill(self._model, more, state)
        return self._reached[num_tokens]


def _dtype(model: Decoder) -> str:
    return str(model.embed_tokens.weight.dtype).removeprefix("torch.")
