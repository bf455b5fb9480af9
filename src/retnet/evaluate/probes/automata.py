"""Strings whose answer a machine of a few states finds: does a model find it in longer ones too?

Each row is `x1 ... xn ANSWER`, and the answer is asked at ANSWER. Models learn from short strings
(from 1 to 40 letters in the paper) and are tested on longer ones.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.evaluate.probes.probe import Examples, Probe, check_length, draw, empty_targets

CHOMSKY = "Delétang et al. 2022, arXiv:2207.02098, appendix A"

MODULUS = 5


def _answered(
    name: str,
    about: str,
    vocab_size: int,
    answers: int,
    string: Callable[..., tuple[Tensor, Tensor]],
) -> Probe:
    """A probe from `string(batch, n, generator) -> (letters (batch, n), answers (batch,))`.

    The last token of the vocabulary is ANSWER; answers are the tokens 0 to `answers - 1`.
    """

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:
        check_length(name, length, 2)
        letters, answer = string(batch, length - 1, generator)
        tokens = torch.cat([letters, torch.full((batch, 1), vocab_size - 1)], 1)
        targets = empty_targets(tokens)
        targets[:, -1] = answer
        return Examples(tokens, targets)

    return Probe(
        name=name,
        about=about,
        source=CHOMSKY,
        vocab_size=vocab_size,
        make=make,
        shortest=2,
        train_length=41,
        test_lengths=(21, 41, 81, 161, 321),
        chance=1 / answers,
    )


def even_pairs() -> Probe:
    """Whether neighbours differ an even number of times: 1 if so. Letters are 0 and 1.

    The same as whether the first letter is the last: one letter has to be kept.
    """

    def string(batch: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = draw(0, 2, (batch, n), generator)
        return x, 1 - x.diff(dim=1).abs().sum(1) % 2

    return _answered("even-pairs", "do neighbours differ an even number of times?", 3, 2, string)


def parity() -> Probe:
    """Whether the number of ones is even: 1 if so. Letters are 0 and 1."""

    def string(batch: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = draw(0, 2, (batch, n), generator)
        return x, 1 - x.sum(1) % 2

    return _answered("parity", "is the number of ones even?", 3, 2, string)


def cycle_navigation() -> Probe:
    """Where a walk on a ring of five places ends: letters 0 stays, 1 goes on, 2 goes back."""

    def string(batch: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = draw(0, 3, (batch, n), generator)
        return x, torch.tensor([0, 1, -1])[x].sum(1) % MODULUS

    return _answered("cycle-navigation", "where does a walk on a ring of 5 end?", 6, 5, string)


def modular_arithmetic() -> Probe:
    """The value of a sum of products, modulo 5, without brackets: `3 + 2 * 4 - 1`.

    Letters 0 to 4 are digits; 5, 6 and 7 are +, - and *, of which * binds tighter. A string of even
    length has no such expression: it begins with 8, which says nothing.
    """

    def string(batch: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        count = (n + 1) // 2
        digits = draw(0, MODULUS, (batch, count), generator)
        signs = draw(5, 8, (batch, count - 1), generator)
        letters = torch.full((batch, n), 8)
        first = n - (2 * count - 1)
        letters[:, first::2] = digits
        letters[:, first + 1 :: 2] = signs
        return letters, _value(digits, signs)

    return _answered(
        "modular-arithmetic", "the value of a sum of products, modulo 5", 10, MODULUS, string
    )


def _value(digits: Tensor, signs: Tensor) -> Tensor:
    """Of digits with 5 (+), 6 (-) or 7 (*) between them, modulo 5: (batch,)."""
    total, product = torch.zeros_like(digits[:, 0]), digits[:, 0]
    for digit, sign in zip(digits[:, 1:].T, signs.T, strict=True):
        times = sign == 7
        total = torch.where(times, total, (total + product) % MODULUS)
        signed = torch.where(sign == 6, -digit, digit)
        product = torch.where(times, product * digit, signed) % MODULUS
    return (total + product) % MODULUS
