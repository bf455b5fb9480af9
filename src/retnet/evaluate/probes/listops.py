"""ListOps: the value of nested lists with MIN, MAX, MED and SM (sum modulo 10)."""

import random
from collections.abc import Sequence

import torch

from retnet.evaluate.probes.probe import Examples, Probe, check_length, empty_targets

LRA = "Nangia and Bowman 2018, arXiv:1804.06028; Long Range Arena, arXiv:2011.04006"

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
DIGITS = tuple(str(digit) for digit in range(10))
PADDING, CLOSE = 0, "]"
WORDS = ("", *DIGITS, *OPERATORS, CLOSE)
"""Token -> word: 0 pads, 1 to 10 are digits, then operators, and the closing bracket."""

IDS = {word: number for number, word in enumerate(WORDS)}

MAX_DEPTH = 10
MAX_ARGUMENTS = 10
OPERATOR_SHARE = 0.25


def listops() -> Probe:
    """Random trees as Long Range Arena draws them, of which the value is asked at the last bracket.

    At each node above depth 10, with probability 1/4 an operator with 2 to 10 arguments, else a
    digit. A tree is kept if it has more than a quarter of `length` tokens and at most `length` (the
    published files: more than 500 and fewer than 2000). Rows are padded with 0 after their end.
    """

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:
        check_length("listops", length, 8)
        seed = torch.randint(2**62, (1,), generator=generator).item()
        chance = random.Random(int(seed))
        tokens = torch.zeros(batch, length, dtype=torch.int64)
        targets = empty_targets(tokens)
        for row in range(batch):
            words = draw_tree(chance, shortest=length // 4 + 1, longest=length)
            tokens[row, : len(words)] = torch.tensor([IDS[word] for word in words])
            targets[row, len(words) - 1] = IDS[str(value(words))]
        return Examples(tokens, targets)

    return Probe(
        name="listops",
        about="the value of nested lists of digits",
        source=LRA,
        vocab_size=len(WORDS),
        make=make,
        shortest=8,
        train_length=128,
        test_lengths=(128, 256, 512),
        chance=0.1,
    )


def draw_tree(chance: random.Random, *, shortest: int, longest: int) -> list[str]:
    """Draw trees until one has from `shortest` to `longest` words."""
    while True:
        words: list[str] = []
        if _draw_node(chance, 1, words, longest) and len(words) >= shortest:
            return words


def _draw_node(chance: random.Random, depth: int, words: list[str], longest: int) -> bool:
    """Append a node; False, at once, if the words become too many."""
    if depth >= MAX_DEPTH or chance.random() > OPERATOR_SHARE:
        words.append(chance.choice(DIGITS))
        return len(words) <= longest
    words.append(chance.choice(OPERATORS))
    for _ in range(chance.randint(2, MAX_ARGUMENTS)):
        if not _draw_node(chance, depth + 1, words, longest):
            return False
    words.append(CLOSE)
    return len(words) <= longest


def value(words: Sequence[str]) -> int:
    """The value of a tree that is written as words.

    Raises:
        ValueError: it is not one whole tree.

    Example:
        >>> value("[MAX 2 9 [MIN 4 7 ] 0 ]".split())
        9
    """
    lists: list[tuple[str, list[int]]] = [("", [])]
    for word in words:
        if word in OPERATORS:
            lists.append((word, []))
            continue
        if word == CLOSE and len(lists) > 1 and lists[-1][1]:
            operator, numbers = lists.pop()
            lists[-1][1].append(_apply(operator, numbers))
        elif word in DIGITS:
            lists[-1][1].append(int(word))
        else:
            raise ValueError(f'"{word}" does not fit there; a tree is like [MAX 2 [MIN 4 7 ] ]')
    if len(lists) > 1 or len(lists[0][1]) != 1:
        raise ValueError(f"{len(words)} words are no single tree; one is like [MAX 2 [MIN 4 7 ] ]")
    return lists[0][1][0]


def _apply(operator: str, numbers: list[int]) -> int:
    if operator == "[SM":
        return sum(numbers) % 10
    if operator == "[MED":  # of an even count the mean of the middle two, truncated
        ordered, half = sorted(numbers), len(numbers) // 2
        return ordered[half] if len(numbers) % 2 else (ordered[half - 1] + ordered[half]) // 2
    return min(numbers) if operator == "[MIN" else max(numbers)
