"""Timing: competitors take turns in one process, so that drift of the machine hits all alike."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from time import perf_counter
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """The middle of repeated measurements, and the range of their middle three fifths."""

    median: float
    p20: float
    p80: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise values; one value is its own range.

        Raises:
            ValueError: there are no values.
        """
        if len(values) == 0:
            raise ValueError("no values to summarise; measure at least once")
        p20, median, p80 = np.percentile(values, [20, 50, 80]).tolist()
        return cls(median, p20, p80, len(values))


class Effort(NamedTuple):
    """How long to measure.

    Attributes:
        warmup: rounds thrown away: first calls allocate memory and choose kernels.
        min_rounds: rounds measured whatever they cost.
        budget_s: seconds after which no further round begins.
    """

    warmup: int
    min_rounds: int
    budget_s: float


FULL = Effort(warmup=1, min_rounds=5, budget_s=8.0)
SUITE = Effort(warmup=1, min_rounds=3, budget_s=2.0)
QUICK = Effort(warmup=1, min_rounds=3, budget_s=0.1)


class Turns(NamedTuple):
    """How long competitors are measured in turns.

    Attributes:
        num: turns of each.
        most_calls: of a turn, that count.
        most_s: seconds after which a turn ends, however few calls it had; at least one.
    """

    num: int
    most_calls: int
    most_s: float


QUICK_TURNS = Turns(num=2, most_calls=2, most_s=0.1)


def host_seconds(call: Callable[[], object]) -> float:
    """Seconds of a call by the host's clock."""
    start = perf_counter()
    call()
    return perf_counter() - start


def alternate(
    competitors: Mapping[str, Callable[[], object]],
    effort: Effort,
    clock: Callable[[Callable[[], object]], float] = host_seconds,
) -> dict[str, list[float]]:
    """Seconds of each competitor's calls, measured in the order A B A B ...

    Args:
        competitors: name -> a call that returns when its work is done, or when `clock` can time
            it; at least one.
        effort: when to stop; a round is one call of each.
        clock: makes a call and says how many seconds it took.

    Returns:
        name -> seconds, of equal length; entries at one index were measured next to each other.
    """
    for _ in range(effort.warmup):
        for call in competitors.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    begin, rounds = perf_counter(), 0
    while rounds < effort.min_rounds or perf_counter() - begin < effort.budget_s:
        for name, call in competitors.items():
            seconds[name].append(clock(call))
        rounds += 1
    return seconds


def in_turns(
    competitors: Mapping[str, Callable[[], object]], turns: Turns
) -> dict[str, list[float]]:
    """Seconds of a call, the mean of each turn: what is done once in some calls counts too.

    Each turn begins with a call that does not count: the others' turns took the caches.

    Args:
        competitors: name -> a call that returns when its work is done.
        turns: how many, and how long each is.

    Returns:
        name -> a mean for each turn, all of equal length.
    """
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    for _ in range(turns.num):
        for name, call in competitors.items():
            call()
            calls, begin = 0, perf_counter()
            while calls == 0 or (
                calls < turns.most_calls and perf_counter() - begin < turns.most_s
            ):
                call()
                calls += 1
            seconds[name].append((perf_counter() - begin) / calls)
    return seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that so many percent of all are not above.

    Example:
        >>> percentile([3.0, 1.0, 2.0, 4.0], 50), percentile([1.0, 2.0], 99)
        (2.0, 2.0)
    """
    ordered = sorted(values)
    return ordered[max(ceil(percent / 100 * len(ordered)) - 1, 0)]


def milliseconds(seconds: Sequence[float]) -> Spread:
    """The spread of times, in milliseconds."""
    return Spread.of([1e3 * s for s in seconds])


def rates(amount: float, seconds: Sequence[float]) -> Spread:
    """The spread of `amount` per second."""
    return Spread.of([amount / s for s in seconds])


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> Spread:
    """How many times ours is faster: theirs / ours, pair by pair, above 1 where ours wins.

    Pairs measured next to each other share the machine's mood; medians of each side do not.

    Raises:
        ValueError: the two are not equally long.
    """
    if len(theirs) != len(ours):
        raise ValueError(
            f"{len(theirs)} and {len(ours)} times are no pairs; measure both with one `alternate`"
        )
    return Spread.of([a / b for a, b in zip(theirs, ours, strict=True)])
