"""Models at equal terms: each tuned on one seed by the same learning rates, then other seeds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from retnet.model import DecoderConfig
from retnet.reproduce.cell import Cell, Result
from retnet.reproduce.experiment import Plan, Setup
from retnet.reproduce.measures import Measure
from retnet.reproduce.scales import Scale
from retnet.reproduce.training import DIVERGED, TUNED_BY, TrainTask

TUNING_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A model of a comparison.

    Attributes:
        config: without its vocabulary.
        variants: other decoders for the same weights, to be measured too.
        tuned_as: a model whose learning rate it takes; empty: it is tuned itself.
        carry_state: whether it learns with the state of what came before, of `TrainSection`.
    """

    config: DecoderConfig
    variants: Mapping[str, DecoderConfig] = field(default_factory=dict)
    tuned_as: str = ""
    carry_state: bool = False


def sweep(
    setup: Setup,
    entrants: Mapping[str, Entrant],
    measures: tuple[Measure, ...],
    done: Mapping[str, Result],
) -> Plan:
    """Train each entrant as `tuned` says.

    Args:
        setup: scale, texts and the entrants to run.
        entrants: by name, the most important first.
        measures: on each trained model.
        done: results by the keys of their cells.
    """

    def cell(name: str, rate: float, seed: int) -> Cell:
        return training_cell(setup, name, entrants[name], rate, seed, measures)

    names = {name: entrants[name].tuned_as for name in setup.chosen(list(entrants))}
    return tuned(names, cell, setup.scale, done)


def tuned(
    names: Mapping[str, str],
    cell: Callable[[str, float, int], Cell],
    scale: Scale,
    done: Mapping[str, Result],
) -> Plan:
    """Each name with each learning rate on the first seed, then with its best on the others.

    A name is finished before the next one begins, so that half a sweep is half a table.

    Args:
        names: each with the one whose learning rate it takes; empty: it is tuned itself.
        cell: makes the cell of a name, a learning rate and a seed.
        scale: learning rates and seeds.
        done: results by the keys of their cells.
    """
    ready: list[Cell] = []
    later: list[Cell] = []
    others = range(TUNING_SEED + 1, TUNING_SEED + scale.seeds)
    for name, tuned_as in names.items():
        tuning = [cell(tuned_as or name, rate, TUNING_SEED) for rate in scale.rates]
        ready += tuning
        rate = best_rate([done[c.key] for c in tuning if c.key in done], len(tuning))
        seeds = [TUNING_SEED, *others] if tuned_as else [*others]
        known = scale.rates[0] if rate is None else rate
        (later if rate is None else ready).extend(cell(name, known, seed) for seed in seeds)
    return Plan(cells=list({c.key: c for c in ready}.values()), later=later)


def training_cell(
    setup: Setup,
    name: str,
    entrant: Entrant,
    rate: float,
    seed: int,
    measures: tuple[Measure, ...],
) -> Cell:
    """Train an entrant once."""
    texts = setup.texts
    assert texts is not None
    task = TrainTask(
        model=replace(entrant.config, vocab_size=texts.vocab_size),
        data=texts.data,
        fingerprint=texts.fingerprint,
        train=replace(setup.scale.train, learning_rate=rate, carry_state=entrant.carry_state),
        seed=seed,
        measures=measures,
        variants={
            key: replace(config, vocab_size=texts.vocab_size)
            for key, config in entrant.variants.items()
        },
    )
    return Cell(labels={"model": name, "learning_rate": rate, "seed": seed}, task=task)


def best_rate(results: Sequence[Result], count: int) -> float | None:
    """The learning rate of the least validation loss; None if not all are there, or all diverged.

    Args:
        results: of one model and one seed, with different learning rates.
        count: how many there must be.
    """
    if len(results) < count:
        return None
    losses = {float(r.labels["learning_rate"]): r.metrics.get(TUNED_BY, math.inf) for r in results}
    best = min(losses, key=lambda rate: losses[rate])
    return best if math.isfinite(losses[best]) else None


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The results of one model with its learning rate.

    Attributes:
        name: of the model.
        rate: the best.
        rates: validation loss of the first seed, by learning rate; infinite if it diverged.
        results: by seed, with the best learning rate; without those that diverged.
    """

    name: str
    rate: float
    rates: Mapping[float, float]
    results: Mapping[int, Result]

    def values(self, metric: str) -> dict[int, float]:
        """A metric by seed; seeds that have none are left out."""
        return {
            seed: result.metrics[metric]
            for seed, result in self.results.items()
            if metric in result.metrics
        }

    @property
    def rate_text(self) -> str:
        """The learning rate, with a star if one beyond those tried might be better."""
        return f"{self.rate:g}{'*' * self.at_edge}"

    @property
    def at_edge(self) -> bool:
        """Whether a learning rate beyond those tried might be better."""
        return len(self.rates) > 1 and self.rate in (min(self.rates), max(self.rates))


def runs(results: Sequence[Result]) -> dict[str, Runs]:
    """Results by model, in the order in which the models came.

    What did not get through its training is left out.
    """
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(str(result.labels["model"]), []).append(result)
    found = {}
    for name, mine in by_model.items():
        first = [result for result in mine if result.labels["seed"] == TUNING_SEED]
        rate = best_rate(first, 1)
        if rate is not None:
            found[name] = Runs(
                name=name,
                rate=rate,
                rates={
                    float(r.labels["learning_rate"]): r.metrics.get(TUNED_BY, math.inf)
                    for r in first
                },
                results={
                    int(r.labels["seed"]): r
                    for r in mine
                    if r.labels["learning_rate"] == rate and DIVERGED not in r.metrics
                },
            )
    return found
