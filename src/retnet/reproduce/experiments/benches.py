"""Figure 6 and table 4 of the paper: what the bench room measures, several times over."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from retnet.bench.ours import OURS, WITHOUT_NUMBA
from retnet.bench.peers.attention import BY_NUMBA
from retnet.bench.picture import Line, draw_lines, tokens_text
from retnet.bench.record import Record, Scalar
from retnet.bench.run import run_bench
from retnet.bench.table import Table, pivot
from retnet.bench.tables import TABLES
from retnet.bench.timing import Spread
from retnet.reproduce.cell import Cell, Outcome, Place, Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.intervals import Claim, estimate
from retnet.reproduce.scales import SMOKE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MODEL = "bench"
"""The label of all cells: the bench chooses its models itself."""

Case = tuple[Scalar, ...]


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """Run a bench once; its records are the result's lines.

    Attributes:
        bench: its name.
        quick: toy sizes.
        repetition: tells equal runs apart.
        minutes: that it takes on two cores, about.
    """

    bench: str
    quick: bool
    repetition: int
    minutes: float

    @property
    def cost(self) -> float:
        """Seconds."""
        return 60 * self.minutes

    @property
    def kind(self) -> str:
        """A bench takes as long again."""
        return self.bench

    def settings(self) -> dict[str, Any]:
        """All that decides what is measured."""
        return {"bench": self.bench, "quick": self.quick, "repetition": self.repetition}

    def terms(self) -> dict[str, Any]:
        """The bench and its sizes."""
        return {"bench": self.bench, "quick": self.quick}

    def run(self, place: Place) -> Outcome:
        """Measure everything; what other programs are missing is left out, as the bench does."""
        folder = place.work / "bench"
        found = run_bench(self.bench, out=folder, quick=self.quick)
        lines = [json.loads(record.to_json()) for record in found.records]
        metrics = {"records": float(len(lines)), "failed": float(len(found.failed))}
        return Outcome(metrics, lines)

    def seconds(self, place: Place) -> float:  # noqa: ARG002 - other tasks need it
        """By experience."""
        return self.cost


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A claim about each case of a bench.

    Attributes:
        says: with the case in place of {}.
        metric: of the records.
        more: whether more of it is better; else less is.
        ours: what of ours is compared.
        not_with: programs left out, since to compare with them would be unfair to one side.
    """

    says: str
    metric: str
    more: bool
    ours: str = OURS
    not_with: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchExperiment:
    """A bench whose records show what a figure or table of the paper shows.

    Attributes:
        name: of the command.
        title: of the page.
        about: what is compared.
        bench: its name.
        kind: of its records.
        length: the case field that is a length.
        others: fields that tell cases apart, besides length and whose code.
        comparisons: of ours with each other program, case by case.
        panels: title, metric and unit of each panel.
        papers: the paper's numbers.
        minutes: that a repetition takes on two cores, about.
        reads_texts: benches read none.
    """

    name: str
    title: str
    about: str
    bench: str
    kind: str
    length: str
    others: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    panels: tuple[tuple[str, str, float], ...]
    papers: Table
    minutes: float
    reads_texts: bool = False

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:  # noqa: ARG002 - as others
        """The bench as often as there are seeds."""
        setup.chosen([MODEL])
        return Plan(
            cells=[
                Cell(
                    labels={"model": MODEL, "seed": repetition},
                    task=BenchTask(
                        bench=self.bench,
                        quick=setup.scale.name == SMOKE,
                        repetition=repetition,
                        minutes=self.minutes,
                    ),
                )
                for repetition in range(setup.scale.seeds)
            ]
        )

    def report(self, results: Sequence[Result]) -> Report:
        """The bench's own table, and ratios over its repetitions."""
        records = [self._records(result) for result in results]
        return Report(
            ours=[TABLES[self.bench](records[-1])],
            papers=[self.papers],
            claims=self._claims(records),
            remarks=[
                f"{len(results)} repetitions; the table and the picture are those of the last. "
                "Claims are ratios of the other program's figures and ours, geometric means over "
                "models, dtypes and batches, in each."
            ],
            draw=lambda figure: self._draw(figure, records[-1]),
        )

    def _records(self, result: Result) -> list[Record]:
        records = [Record.from_json(json.dumps(line)) for line in result.lines]
        return [record for record in records if record.bench == self.kind]

    def _claims(self, repetitions: Sequence[Sequence[Record]]) -> list[Claim]:
        """Of each other program at each length, the geometric mean over the other fields."""
        found = [pivot(records, "by", self.length, *self.others) for records in repetitions]
        groups = dict.fromkeys((by, length) for by, length, *_ in found[-1] if _is_other(by))
        claims = []
        for comparison in self.comparisons:
            for by, length in groups:
                if by in comparison.not_with:
                    continue
                ratios = [
                    ratio
                    for one in found
                    if (ratio := _mean_advantage(one, by, length, comparison)) is not None
                ]
                if ratios:
                    assert not isinstance(length, str)
                    claims.append(
                        Claim(
                            says=comparison.says,
                            name=f"{by} at {tokens_text(length)}",
                            gap=estimate([ratio - 1.0 for ratio in ratios]),
                            unit="times as good, less 1",
                            least=0.02,
                        )
                    )
        return claims

    def _draw(self, figure: "Figure", records: Sequence[Record]) -> None:
        found = pivot(records, "by", self.length, *self.others)
        panels = figure.subplots(1, len(self.panels), squeeze=False)[0]
        for axes, (title, metric, unit) in zip(panels, self.panels, strict=True):
            # of the other fields, the case that has the longest lines
            counts: dict[Case, int] = {}
            for _, _, *rest in (case for case, values in found.items() if metric in values):
                counts[tuple(rest)] = counts.get(tuple(rest), 0) + 1
            if not counts:
                axes.set_axis_off()
                continue
            shown = max(counts, key=lambda rest: counts[rest])
            lines: dict[str, tuple[list[float], list[float]]] = {}
            for (by, length, *rest), values in found.items():
                if tuple(rest) == shown and metric in values:
                    x, y = lines.setdefault(str(by), ([], []))
                    x.append(float(length))
                    y.append(values[metric].median / unit)
            drawn = [Line(by, x, y) for by, (x, y) in lines.items()]
            told = ", ".join(
                str(value) if isinstance(value, str) else f"{field} {value}"
                for field, value in zip(self.others, shown, strict=True)
            )
            draw_lines(axes, f"{title}\n{told}", drawn, log_y=True)
            axes.set_xlabel("tokens")


def _is_other(by: Scalar) -> bool:
    """Whether it is another program or model, and not ours without a part of it."""
    return by != OURS and not str(by).startswith((f"{OURS} without", f"{OURS}, "))


def _mean_advantage(
    found: Mapping[Case, Mapping[str, Spread]], by: Scalar, length: Scalar, comparison: Comparison
) -> float | None:
    """How many times better ours is, over all cases that both have; None where there is none."""
    logs = []
    for (who, long, *rest), theirs in found.items():
        ours = found.get((comparison.ours, long, *rest), {})
        if (
            (who, long) == (by, length)
            and comparison.metric in theirs
            and comparison.metric in ours
        ):
            ratio = theirs[comparison.metric].median / ours[comparison.metric].median
            logs.append(math.log(1 / ratio if comparison.more else ratio))
    return math.exp(math.fsum(logs) / len(logs)) if logs else None


FIGURE6 = BenchExperiment(
    name="figure6",
    title="Figure 6: decoding memory, throughput and latency",
    about=(
        "The next token after texts of several lengths, in batches of several sizes: RetNet, the "
        "same decoder with attention and a key-value cache, and other people's programs, taking "
        "turns in one process. Numba compiles the steps of RetNet, and of the attention that says "
        "so; those of the others are PyTorch's calls. The paper measures 6.7 billion parameters on "
        "an A100."
    ),
    bench="decode",
    kind="decode/step",
    length="context",
    others=("model", "dtype", "B"),
    comparisons=(
        Comparison(says="RetNet keeps less than {}", metric="kept_bytes", more=False),
        Comparison(says="RetNet writes faster than {}", metric="tokens_per_s", more=True),
        Comparison(
            says="RetNet without Numba writes faster than {}",
            metric="tokens_per_s",
            more=True,
            ours=WITHOUT_NUMBA,
            not_with=(BY_NUMBA,),
        ),
    ),
    panels=(
        ("State or cache, MiB", "kept_bytes", 2.0**20),
        ("Tokens per second", "tokens_per_s", 1.0),
        ("Latency, ms", "token_ms", 1.0),
    ),
    papers=Table(
        title="The paper's ratios at 8k",
        columns=("of Transformer and RetNet", "times better"),
        rows=[("memory", "3.4"), ("throughput", "8.4"), ("latency", "15.6")],
        caption="arXiv:2307.08621, figure 1: 6.7 billion parameters, A100-80GB; batch not stated.",
    ),
    minutes=6.0,
)

TABLE4 = BenchExperiment(
    name="table4",
    title="Table 4: training memory and throughput",
    about=(
        "Whole training steps on rows of several lengths: RetNet beside other people's decoders "
        "of equal size. The paper measures rows of 8192 on eight A100."
    ),
    bench="train",
    kind="train/step",
    length="T",
    others=("model", "precision", "B"),
    comparisons=(
        Comparison(says="RetNet trains faster than {}", metric="tokens_per_s", more=True),
        Comparison(
            says="RetNet needs less memory than {}", metric="peak_over_start_mib", more=False
        ),
    ),
    panels=(
        ("Tokens per second", "tokens_per_s", 1.0),
        ("Peak memory, MiB", "peak_over_start_mib", 1.0),
    ),
    papers=Table(
        title="The paper's figures: Transformer / with FlashAttention / RetNet",
        columns=("size", "GB", "words per second"),
        rows=[
            ("1.3B", "74.8 / 38.8 / 34.5", "10832.4 / 63965.2 / 73344.8"),
            ("2.7B", "69.6 / 42.1 / 42.0", "5186.0 / 34990.2 / 38921.2"),
            ("6.7B", "69.0 / 51.4 / 48.0", "2754.4 / 16230.1 / 17458.6"),
            ("13B", "61.4 / 46.3 / 45.9", "1208.9 / 7945.1 / 8642.2"),
        ],
        caption="arXiv:2307.08621, table 4: rows of 8192, eight A100-80GB.",
    ),
    minutes=3.0,
)
