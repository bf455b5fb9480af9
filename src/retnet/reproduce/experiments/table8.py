"""Table 8 of the paper: the same last tokens from more and more context."""

from collections.abc import Mapping, Sequence
from functools import cache

from retnet.bench.picture import tokens_text
from retnet.bench.table import Table
from retnet.model import DecoderConfig, rival
from retnet.reproduce.cell import Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.contexts import (
    context_measure,
    context_table,
    curve_of,
    draw_contexts,
    tested,
)
from retnet.reproduce.experiments.domains import gap_of, tuning_remarks
from retnet.reproduce.intervals import Claim
from retnet.reproduce.sweep import Entrant, runs, sweep

RETNET, TRANSFORMER = "RetNet", "Transformer"
SEGMENTS = 16
"""Of the last 2048 tokens the paper scores 128; so of any length the last sixteenth."""

PAPER = {TRANSFORMER: ("13.55", "12.56", "12.35"), RETNET: ("13.09", "12.14", "11.98")}
"""Perplexity, arXiv:2307.08621 table 8."""


class Table8:
    """See the module."""

    name = "table8"
    title = "Table 8: growing context"
    about = (
        "The last sixteenth of each row is predicted from a quarter of the row, from half of it "
        "and from all of it; rows are as long as those of the training."
    )
    reads_texts = True

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """RetNet and the Transformer."""
        assert setup.texts is not None
        length = setup.scale.train.seq_len
        contexts = (length // 4, length // 2, length)
        texts = [text for text in setup.texts.tests if text.longest > length]
        measures = tuple(
            context_measure(text, contexts, max(length // SEGMENTS, 1))
            for text in texts or setup.texts.tests[:1]
        )
        return sweep(setup, _entrants(setup.scale.model), measures, done)

    def report(self, results: Sequence[Result]) -> Report:
        """Perplexity by context, and whether more of it helps."""
        found = runs(results)
        measures = tested(results)
        curves = {name: curve_of(run, measures) for name, run in found.items()}
        contexts = measures[0]["contexts"]
        caption = (
            f"Perplexity of the last {measures[0]['segment']} tokens of rows of {contexts[-1]}, "
            f"mean loss over {', '.join(m['name'] for m in measures)}. Mean over seeds ± its "
            "standard error. More context: whether the longest improves on the shortest, by "
            "intervals over seeds."
        )
        rates = {name: run.rate_text for name, run in found.items()}
        claims = [
            Claim(
                says=f"{{}} is better at {tokens_text(contexts[-1])} than at "
                f"{tokens_text(contexts[0])}",
                name=name,
                gap=gap_of(
                    curves.get(name, {}).get(contexts[0]), curves.get(name, {}).get(contexts[-1])
                ),
            )
            for name in (RETNET, TRANSFORMER)
        ]
        claims += [
            Claim(
                says="RetNet is better than the Transformer at {}",
                name=tokens_text(context),
                gap=gap_of(
                    curves.get(TRANSFORMER, {}).get(context), curves.get(RETNET, {}).get(context)
                ),
            )
            for context in contexts
        ]
        return Report(
            ours=[context_table("Perplexity by context", curves, rates, caption)],
            papers=[
                Table(
                    title="Perplexity in the paper",
                    columns=("model", "512", "1024", "2048"),
                    rows=[(name, *row) for name, row in PAPER.items()],
                    caption="arXiv:2307.08621, table 8: the last 128 of 2048 tokens; one run each.",
                )
            ],
            claims=claims,
            remarks=tuning_remarks(found, {}, results),
            draw=lambda figure: draw_contexts(figure, curves, (RETNET,)),
        )


@cache
def _entrants(base: DecoderConfig) -> dict[str, Entrant]:
    return {
        RETNET: Entrant(config=base),
        TRANSFORMER: Entrant(config=rival(base, "attention")),
    }
