"""Strings to be written again: as they were, backwards, sorted, or once more."""

from collections.abc import Callable

import torch
from torch import Tensor

from retnet.evaluate.probes.probe import Examples, Probe, check_length, draw, empty_targets

CHOMSKY = "Delétang et al. 2022, arXiv:2207.02098, appendix A"


def _written_again(
    name: str, about: str, source: str, vocab_size: int, rewrite: Callable[[Tensor], Tensor]
) -> Probe:
    """`x1 ... xm WRITE y1 ... y(m-1)`, and y1 ... ym are asked, each after those before it.

    WRITE is 1, letters are from 2 on; a row of odd length begins with 0.
    """

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:
        check_length(name, length, 2)
        m = length // 2
        x = draw(2, vocab_size, (batch, m), generator)
        y = rewrite(x)
        write = torch.ones(batch, 1, dtype=torch.int64)
        padding = torch.zeros(batch, length - 2 * m, dtype=torch.int64)
        tokens = torch.cat([padding, x, write, y[:, :-1]], 1)
        targets = empty_targets(tokens)
        targets[:, -m:] = y
        return Examples(tokens, targets)

    return Probe(
        name=name,
        about=about,
        source=source,
        vocab_size=vocab_size,
        make=make,
        shortest=2,
        train_length=64,
        test_lengths=(32, 64, 128, 256),
        chance=1 / (vocab_size - 2),
    )


def copying(*, vocab_size: int = 28) -> Probe:
    """Write a string again; with the usual vocabulary, of 26 letters."""
    source = "Jelassi et al. 2024, arXiv:2402.01032, section 3"
    return _written_again("copying", "write the string again", source, vocab_size, lambda x: x)


def reverse(*, vocab_size: int = 10) -> Probe:
    """Write a string backwards."""
    return _written_again(
        "reverse", "write the string backwards", CHOMSKY, vocab_size, lambda x: x.flip(1)
    )


def sort(*, vocab_size: int = 7) -> Probe:
    """Write the letters of a string in order (bucket sort: few letters, many times)."""
    return _written_again(
        "sort", "write the letters in order", CHOMSKY, vocab_size, lambda x: x.sort(1).values
    )


def repeated(*, vocab_size: int = 64) -> Probe:
    """A random string twice in a row, with no mark between: predict the second half.

    The first token of the second half cannot be known; all others can, by looking up what came
    after the same tokens before.
    """

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:
        check_length("repeated", length, 4)
        m = length // 2
        x = draw(0, vocab_size, (batch, m), generator)
        tokens = torch.cat([x, x, x[:, : length - 2 * m]], 1)
        targets = empty_targets(tokens)
        targets[:, m : 2 * m - 1] = x[:, 1:]
        return Examples(tokens, targets)

    return Probe(
        name="repeated",
        about="predict a random string when it comes again",
        source="Su 2023, kexue.fm/archives/9603 (repeated text)",
        vocab_size=vocab_size,
        make=make,
        shortest=4,
        train_length=64,
        test_lengths=(64, 128, 256),
        chance=1 / vocab_size,
    )
