"""Memory of a model that was trained on text, tried on text: passages again, and hidden numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate.losses import Interval, mean_interval
from retnet.evaluate.probes.probe import IGNORED, empty_targets
from retnet.evaluate.reading import CALL_TOKENS
from retnet.model import Decoder, select_rows

NEEDLE = " The secret number is {number}. "
QUESTION = " The secret number is"
DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class RepeatScore:
    """How well a passage is predicted when it comes for the second time.

    Attributes:
        length: tokens of text and repetition together.
        first: share of tokens of the passage that are the likeliest, the first time.
        again: the same, the second time.
        plain: the same in as many tokens of text that goes on instead.
        samples: passages.
    """

    length: int
    first: Interval
    again: Interval
    plain: Interval
    samples: int


@torch.inference_mode()
def score_repeats(
    model: Decoder, stream: TokenStream, *, length: int, most_samples: int = 32
) -> RepeatScore:
    """Let a model read half of `length` tokens twice, and the whole as it is, and compare.

    Args:
        model: in evaluation mode.
        stream: documents, two of them at least `length` tokens long, or one twice that.
        length: tokens read, BOS not counted.
        most_samples: passages, evenly over the text.

    Raises:
        ValueError: length is below 4, or the text has fewer than two passages.

    Source:
        Su 2023, kexue.fm/archives/9603: accuracy on repeated and on plain text.
    """
    if length < 4:
        raise ValueError(f"length ({length}) must be at least 4; raise it")
    rows = passages(stream, length, most_samples)
    half = length // 2
    twice = torch.cat([rows[:, :half], rows[:, :half]], 1)
    known, plain = (_right(model, texts, stream.bos_id).double() for texts in (twice, rows))
    return RepeatScore(
        length=length,
        first=mean_interval(known[:, :half].mean(1).tolist()),
        again=mean_interval(known[:, half:].mean(1).tolist()),
        plain=mean_interval(plain[:, half : 2 * half].mean(1).tolist()),
        samples=len(rows),
    )


@dataclass(frozen=True, kw_only=True)
class NeedleScore:
    """How well a number that was told in a text is known at its end.

    Attributes:
        length: tokens of the text.
        depth: where the number was told: 0 the beginning, 1 the end.
        distance: tokens between its last digit and the question.
        right: share of texts where it is the likeliest of ten numbers.
        gain: nats by which having been told raises its log-probability.
        samples: texts.
    """

    length: int
    depth: float
    distance: int
    right: Interval
    gain: Interval
    samples: int


@torch.inference_mode()
def score_needles(
    model: Decoder,
    tokenizer: Tokenizer,
    stream: TokenStream,
    *,
    length: int,
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    most_samples: int = 16,
    seed: int = 0,
) -> list[NeedleScore]:
    """Tell a number at several depths of texts, and ask for it at their ends.

    " The secret number is 48213. " stands somewhere in the text, and " The secret number is" at its
    end. Small models seldom write such a number, so what counts is whether it is likelier than nine
    others, and likelier than without having been told.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        stream: documents with passages of that length.
        length: tokens of a passage; the needle and the question come in addition.
        depths: see `NeedleScore`.
        most_samples: texts.
        seed: of the numbers.

    Raises:
        ValueError: the text has fewer than two passages, or a depth is not from 0 to 1.

    Source:
        Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack; passkeys: Mohtashami and Jaggi
        2023, arXiv:2305.16300, section 4.2.
    """
    if not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths ({tuple(depths)}) must be from 0 to 1")
    rows = passages(stream, length, most_samples).tolist()
    generator = torch.Generator().manual_seed(seed)
    numbers = [
        (torch.randperm(9 * 10 ** (DIGITS - 1), generator=generator)[:10] + 10 ** (DIGITS - 1))
        for _ in rows
    ]
    answers = [[tokenizer.encode(f" {number}.") for number in own.tolist()] for own in numbers]
    question = tokenizer.encode(QUESTION)
    untold = [
        _log_probabilities(model, [stream.bos_id, *passage, *question], own)
        for passage, own in zip(rows, answers, strict=True)
    ]
    scores = []
    for depth in depths:
        place = round(depth * length)
        right, gain, distance = [], [], 0
        for passage, own, ten, before in zip(rows, answers, numbers, untold, strict=True):
            needle = tokenizer.encode(NEEDLE.format(number=int(ten[0])))
            text = [stream.bos_id, *passage[:place], *needle, *passage[place:], *question]
            told = _log_probabilities(model, text, own)
            right.append(float(told.argmax() == 0))
            gain.append((told[0] - before[0]).item())
            distance = length - place
        scores.append(
            NeedleScore(
                length=length,
                depth=depth,
                distance=distance,
                right=mean_interval(right),
                gain=mean_interval(gain),
                samples=len(rows),
            )
        )
    return scores


def passages(stream: TokenStream, length: int, most: int) -> Int[Tensor, "samples length"]:
    """Passages of one document each, without its BOS, that do not overlap."""
    starts = np.asarray(stream.document_starts)
    ends = np.append(starts[1:], stream.num_tokens)
    begins = [
        begin
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        for begin in range(start + 1, end - length + 1, length)
    ]
    if len(begins) < 2:
        raise ValueError(
            f"the text has {len(begins)} passages of {length} tokens of one document, and there "
            "must be at least 2; give longer documents, or a shorter length"
        )
    chosen = np.unique(np.linspace(0, len(begins) - 1, min(most, len(begins))).round().astype(int))
    places = np.array(begins)[chosen, None] + np.arange(length)
    return torch.from_numpy(stream.tokens[places].astype(np.int64))


def tokens_before(rows: Int[Tensor, "B T"], bos_id: int) -> Int[Tensor, "B T"]:
    """The token in front of each: what it is predicted after; BOS in front of the first."""
    return torch.cat([torch.full_like(rows[:, :1], bos_id), rows[:, :-1]], 1)


def _right(model: Decoder, rows: Int[Tensor, "B T"], bos_id: int) -> Bool[Tensor, "B T"]:
    """Whether each token is the likeliest after BOS and those before it."""
    device = next(model.parameters()).device
    found = []
    for part in rows.split(max(1, CALL_TOKENS // rows.shape[1])):
        hidden, _ = model.hidden(tokens_before(part, bos_id).to(device))
        guesses = [model.head(vectors).argmax(-1) for vectors in hidden.split(256, dim=1)]
        found.append(torch.cat(guesses, 1).cpu() == part)
    return torch.cat(found)


def _log_probabilities(
    model: Decoder, text: list[int], answers: Sequence[list[int]]
) -> Float[Tensor, " answers"]:
    """Of each answer after the text, which is read once."""
    device = next(model.parameters()).device
    _, state = model.hidden(torch.tensor([text[:-1]], device=device))
    longest = max(map(len, answers))
    inputs = torch.zeros(len(answers), longest, dtype=torch.int64)
    targets = empty_targets(inputs)
    for row, answer in enumerate(answers):
        inputs[row, : len(answer)] = torch.tensor([text[-1], *answer[:-1]])
        targets[row, : len(answer)] = torch.tensor(answer)
    logits, _ = model(inputs.to(device), select_rows(state, [0] * len(answers)))
    chosen = logits.log_softmax(-1).cpu().gather(2, targets.clamp_min(0)[:, :, None])[..., 0]
    return (chosen * (targets != IGNORED)).sum(1)
