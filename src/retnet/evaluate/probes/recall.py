"""Recall: a value that was read with a key has to be given when the key comes again."""

import math

import torch

from retnet.evaluate.probes.probe import (
    Examples,
    Probe,
    check_length,
    choose,
    draw,
    empty_targets,
    weighted_choice,
)

ZOOLOGY = "Arora et al. 2023, arXiv:2312.04927, section 3 (MQAR)"

MQAR_POINTS = ((64, 4), (128, 8), (256, 16), (512, 64))
"""Lengths and pairs of that paper's figure 2."""

VOCAB_SIZE = 8192
"""That paper's."""

GAP_POWER = 0.01
"""Its `a`: keys come again soon after the pairs, and seldom late."""


def mqar(*, vocab_size: int = VOCAB_SIZE, pairs: int | None = None, filler: bool = False) -> Probe:
    """Multi-query associative recall.

    `k1 v1 k2 v2 ...` and then slots of two places, in the first of which each key comes once more:
    its value is asked there. Keys are from 1 to V/2 - 1, values from V/2 to V - 1, none twice. Slot
    i = 1, 2, ... is drawn with weight i^(a - 1), so most questions come early.

    Args:
        vocab_size: V.
        pairs: K; None is a 16th of the length.
        filler: other places hold random tokens instead of 0: the harder form.
    """
    half = vocab_size // 2

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:
        K = length // 16 if pairs is None else pairs
        check_length(name, length, 16 if pairs is None else 4 * pairs)
        keys = choose(1, half, (batch, K), generator)
        values = choose(half, vocab_size, (batch, K), generator)
        tokens = torch.zeros(batch, length, dtype=torch.int64)
        if filler:
            tokens = draw(0, vocab_size, (batch, length), generator)
        tokens[:, 0 : 2 * K : 2], tokens[:, 1 : 2 * K : 2] = keys, values
        slots = (length - 2 * K) // 2
        log_weights = (GAP_POWER - 1) * torch.arange(1, slots + 1, dtype=torch.float64).log()
        asked = 2 * K + 2 * weighted_choice(log_weights, batch, K, generator)
        tokens.scatter_(1, asked, keys)
        return Examples(tokens, empty_targets(tokens).scatter_(1, asked, values))

    name = "mqar-random" if filler else "mqar"
    if vocab_size != VOCAB_SIZE:
        name += f"-{vocab_size}"
    return Probe(
        name=name,
        about="give the value of each key that comes again",
        source=ZOOLOGY,
        vocab_size=vocab_size,
        make=make,
        shortest=16 if pairs is None else 4 * pairs,
        train_length=64,
        test_lengths=(64, 128, 256),
        chance=1 / (vocab_size - half),
    )


def one_question(*, first: bool, vocab_size: int = 128) -> Probe:
    """One key is asked for among pairs, before them or after them.

    `ASK q k1 v1 ... kK vK ANSWER` against `k1 v1 ... kK vK ASK q ANSWER`: the same tokens, and the
    value of q is asked at ANSWER. Who knows the question while reading needs to keep one pair, who
    does not needs to keep all. Keys are all different, values need not be.

    Args:
        first: whether the question comes first.
        vocab_size: V; 0 pads, 1 is ASK, 2 is ANSWER, then keys, and as many values.
    """
    keys_end = 3 + (vocab_size - 3) // 2
    name = "question-first" if first else "context-first"

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:
        check_length(name, length, 5)
        K = (length - 3) // 2
        keys = choose(3, keys_end, (batch, K), generator)
        values = draw(keys_end, vocab_size, (batch, K), generator)
        asked = draw(0, K, (batch, 1), generator)
        question = torch.cat([torch.ones_like(asked), keys.gather(1, asked)], 1)
        context = torch.stack([keys, values], 2).flatten(1)
        parts = [question, context] if first else [context, question]
        odd = length - 2 * K - 3
        parts = [torch.zeros(batch, odd, dtype=torch.int64), *parts, torch.full_like(asked, 2)]
        tokens = torch.cat(parts, 1)
        targets = empty_targets(tokens)
        targets[:, -1:] = values.gather(1, asked)
        return Examples(tokens, targets)

    return Probe(
        name=name,
        about=f"give the value of one key, named {'before' if first else 'after'} the pairs",
        source="Arora et al. 2024, arXiv:2407.05483 (the order of question and text)",
        vocab_size=vocab_size,
        make=make,
        shortest=5,
        train_length=33,
        test_lengths=(33, 65, 97),
        chance=1 / (vocab_size - keys_end),
    )


def needle(*, depth: float | None = None, vocab_size: int = 64) -> Probe:
    """One marked token in a long text of noise, asked for at the end.

    `noise ... NEEDLE v ... noise ASK`: v is asked at ASK. Noise and v are of the same alphabet, so
    that only the mark tells which token to keep.

    Args:
        depth: where NEEDLE stands, as a share of the text: 0 its beginning, 1 right before ASK;
            None: anywhere.
        vocab_size: V; 0 is ASK, 1 is NEEDLE.

    Raises:
        ValueError: depth is not from 0 to 1.
    """
    if depth is not None and not 0 <= depth <= 1:
        raise ValueError(f"depth ({depth}) must be from 0 to 1, or None for anywhere")

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:
        check_length("needle", length, 3)
        tokens = draw(2, vocab_size, (batch, length), generator)
        last = length - 3  # the latest place of NEEDLE
        if depth is None:
            at = draw(0, last + 1, (batch, 1), generator)
        else:
            at = torch.full((batch, 1), math.floor(depth * last + 0.5))
        tokens.scatter_(1, at, torch.ones_like(at))
        tokens[:, -1] = 0
        targets = empty_targets(tokens)
        targets[:, -1:] = tokens.gather(1, at + 1)
        return Examples(tokens, targets)

    return Probe(
        name="needle",
        about="give the token after the mark, at the end of the text",
        source="Kamradt 2023, github.com/gkamradt/LLMTest_NeedleInAHaystack, in tokens",
        vocab_size=vocab_size,
        make=make,
        shortest=3,
        train_length=64,
        test_lengths=(64, 256, 1024),
        chance=1 / (vocab_size - 2),
    )
