"""Table 5 of the paper: RetNet and its rivals, equal in parameters and data."""

from collections.abc import Mapping, Sequence
from functools import cache

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
from retnet.reproduce.intervals import Claim
from retnet.reproduce.sweep import Entrant, Runs, runs, sweep

RETNET = "retention"

RIVALS = (
    "attention",
    "rwkv",
    "h3",
    "hyena",
    "linear_attention",
    "lru",
    "gau",
    "aft",
    "qrnn",
    "lstm",
)

NAMES = {
    "retention": "RetNet",
    "attention": "Transformer",
    "rwkv": "RWKV",
    "h3": "H3",
    "hyena": "Hyena",
    "linear_attention": "Linear Transformer",
    "lru": "LRU",
    "gau": "GAU",
    "aft": "AFT",
    "qrnn": "QRNN",
    "lstm": "LSTM",
}
"""As papers call the mixers."""

PAPER_DOMAINS = ("in domain", "PG22", "QMSum", "GovReport", "SummScreen")
PAPER = {
    "rwkv": (30.92, 51.41, 28.17, 19.80, 25.78),
    "h3": (29.97, 49.17, 24.29, 19.19, 25.11),
    "hyena": (32.08, 52.75, 28.18, 20.55, 26.51),
    "linear_attention": (40.24, 63.86, 28.45, 25.33, 32.02),
    "retention": (26.05, 45.27, 21.33, 16.52, 22.48),
}
"""Perplexity, arXiv:2307.08621 table 5."""


class Table5:
    """See the module."""

    name = "table5"
    title = "Table 5: RetNet and its rivals"
    about = (
        "One decoder, its token mixer exchanged; channel mixers are widened or narrowed until all "
        "have as many parameters, embeddings not counted. All read the same tokens in the same "
        "order by the same schedule; each has the best learning rate of the same few. The paper "
        "compares models of 200 million parameters that read five billion tokens."
    )
    reads_texts = True

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """RetNet and each rival."""
        return sweep(setup, _entrants(setup.scale.model), domain_measures(setup), done)

    def report(self, results: Sequence[Result]) -> Report:
        """Perplexity by domain, and whether RetNet has the least."""
        found = runs(results)
        return Report(
            ours=[perplexity_table("Perplexity per token", found, NAMES, results)],
            papers=[_paper_table()],
            claims=_claims(found, results),
            remarks=tuning_remarks(found, NAMES, results),
            draw=lambda figure: draw_domains(figure, found, NAMES, results),
        )


@cache
def _entrants(base: DecoderConfig) -> dict[str, Entrant]:
    rivals = {name: Entrant(config=rival(base, name)) for name in RIVALS}
    return {RETNET: Entrant(config=base), **rivals}


def _claims(found: Mapping[str, Runs], results: Sequence[Result]) -> list[Claim]:
    """That RetNet predicts better than each rival, in domain and elsewhere; the paper's first."""
    groups = {
        "": [name for name in RIVALS if name in PAPER],
        ", not in the paper's table": [name for name in RIVALS if name not in PAPER],
    }
    return [
        Claim(
            says=f"RetNet predicts better {place} than {{}}{addition}",
            name=NAMES[name],
            gap=gap_between(found.get(name), found.get(RETNET), values),
        )
        for addition, names in groups.items()
        for place, values in losses_by_place(results).items()
        for name in names
    ]


def _paper_table() -> Table:
    order = sorted(PAPER, key=lambda name: PAPER[name])
    return Table(
        title="Perplexity in the paper",
        columns=("model", *PAPER_DOMAINS),
        rows=[(NAMES[name], *(f"{value:.2f}" for value in PAPER[name])) for name in order],
        caption="arXiv:2307.08621, table 5; one run each, no spread is given.",
    )
