"""Table 6 of the paper: RetNet without one of its parts."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from retnet.bench.table import Table
from retnet.model import DecoderConfig, rival
from retnet.reproduce.cell import Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.domains import (
    domain_measures,
    draw_domains,
    gap_between,
    losses_by_place,
    perplexity_table,
    tuning_remarks,
)
from retnet.reproduce.experiments.table5 import PAPER_DOMAINS
from retnet.reproduce.intervals import Claim
from retnet.reproduce.sweep import Entrant, Runs, runs, sweep

RETNET = "RetNet"
SMALLER = 4
"""Times as many heads, each a so much smaller one, as in the paper."""

PAPER = {
    RETNET: (26.05, 45.27, 21.33, 16.52, 22.48),
    "no gate": (27.84, 49.44, 22.52, 17.45, 23.72),
    "no head norm": (27.54, 46.95, 22.61, 17.59, 23.73),
    "no decay": (27.86, 47.85, 21.99, 17.49, 23.70),
    "one decay": (27.02, 47.18, 22.08, 17.17, 23.38),
    "smaller heads": (27.68, 47.72, 23.09, 17.46, 23.41),
}
"""Perplexity, arXiv:2307.08621 table 6."""


class Table6:
    """See the module."""

    name = "table6"
    title = "Table 6: RetNet without one of its parts"
    about = (
        "RetNet without the swish gate, without the norm of each head, without decay (all decays "
        "1), with one decay for all heads (127/128), and with heads a quarter as wide; channel "
        "mixers take up the parameters that this frees. All else is as in table 5."
    )
    reads_texts = True

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """RetNet and each ablation."""
        return sweep(setup, _entrants(setup.scale.model), domain_measures(setup), done)

    def report(self, results: Sequence[Result]) -> Report:
        """Perplexity by domain, and whether each part helps."""
        found = runs(results)
        return Report(
            ours=[perplexity_table("Perplexity per token", found, {}, results)],
            papers=[_paper_table()],
            claims=_claims(found, results),
            remarks=tuning_remarks(found, {}, results),
            draw=lambda figure: draw_domains(figure, found, {}, results),
        )


@cache
def _entrants(base: DecoderConfig) -> dict[str, Entrant]:
    mixer: Any = base.layers[0].mixer
    usual = {field.name: getattr(mixer, field.name) for field in fields(mixer)}
    changes = {
        "no gate": {"gate": False},
        "no head norm": {"head_norm": "none"},
        "no decay": {"decay": "constant:1"},
        "one decay": {"decay": "constant:0.9921875"},
        "smaller heads": {"num_heads": SMALLER * mixer.num_heads},
    }
    parts = {
        name: Entrant(config=rival(base, "retention", **usual | change))
        for name, change in changes.items()
    }
    return {RETNET: Entrant(config=base), **parts}


def _claims(found: Mapping[str, Runs], results: Sequence[Result]) -> list[Claim]:
    """That each change makes RetNet worse, in domain and elsewhere."""
    return [
        Claim(
            says=f"RetNet predicts worse {place} with {{}}",
            name=name,
            gap=gap_between(found.get(name), found.get(RETNET), values),
        )
        for place, values in losses_by_place(results).items()
        for name in PAPER
        if name != RETNET
    ]


def _paper_table() -> Table:
    return Table(
        title="Perplexity in the paper",
        columns=("model", *PAPER_DOMAINS),
        rows=[(name, *(f"{value:.2f}" for value in row)) for name, row in PAPER.items()],
        caption="arXiv:2307.08621, table 6; one run each, no spread is given.",
    )
