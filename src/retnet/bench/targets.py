"""What speed was promised, and what was measured: a table made of the same records.

Training is in bfloat16 on rows of 8,192 tokens, decoding after 8,192 tokens, unless a claim says
something else.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from retnet.bench.record import Record, Scalar, latest
from retnet.bench.table import Table, caption

FIELDS = ("model", "B", "T", "precision", "dtype", "context", "by")
COMPARED = ("train/step", "prefill/prompt", "prefill/on", "decode/step")
PYTORCH = ("retnet with attention", "transformers")


class Figures:
    """The latest medians of one model.

    Args:
        records: of any model.
        model: its name.
    """

    def __init__(self, records: Iterable[Record], model: str) -> None:
        self._found = [record for record in records if record.case["model"] == model]

    def best(self, bench: str, metric: str, by: tuple[str, ...], **case: Scalar) -> float:
        """The largest median of a metric among those whose code begins with one of `by`.

        Raises:
            LookupError: there is none.
        """
        values = [
            record.spread.median
            for record in self._found
            if (record.bench, record.metric) == (bench, metric)
            and any(_is(str(record.case["by"]), name) for name in by)
            and all(record.case.get(key) == value for key, value in case.items())
        ]
        if not values:
            raise LookupError(f"no {metric} of {by} in {bench}")
        return max(values)

    def training(self, metric: str, by: str = "retnet", T: int = 8192) -> float:
        """Of training steps in bfloat16."""
        return self.best("train/step", metric, (by,), T=T, precision="bfloat16", B=1)

    def decoding(self, metric: str, *by: str, context: int = 8192, B: int = 1) -> float:
        """Of decoding, the best of dtypes and of those named."""
        return self.best("decode/step", metric, by, context=context, B=B)

    def share_of_fastest(self, B: int) -> float:
        """Of the reading speed, in our fastest dtype."""
        speed = self.decoding("tokens_per_s", "retnet", B=B)
        dtype = next(
            record.case["dtype"]
            for record in self._found
            if record.metric == "tokens_per_s"
            and record.case["by"] == "retnet"
            and record.spread.median == speed
        )
        metric, at = "share_of_reading", {"context": 8192, "B": B, "dtype": dtype}
        return self.best("decode/step", metric, ("retnet",), **at)

    def flatness(self, bench: str, lengths: Iterable[int], **case: Scalar) -> float:
        """How far, relatively, tokens per second at the lengths are from those at the first."""
        speeds = [self.best(bench, "tokens_per_s", ("retnet",), T=T, **case) for T in lengths]
        return max(abs(speed / speeds[0] - 1) for speed in speeds)


class Target(NamedTuple):
    """A promise.

    Attributes:
        claim: what is compared with what.
        wanted: the bound.
        at_least: whether more is better.
        measured: its figure; LookupError where the records lack one.
    """

    claim: str
    wanted: float
    at_least: bool
    measured: Callable[[Figures], float]

    def met(self, value: float) -> bool:
        """Whether a figure keeps the promise."""
        return value >= self.wanted if self.at_least else value <= self.wanted


def _training_speed(by: str) -> Callable[[Figures], float]:
    return lambda of: of.training("tokens_per_s") / of.training("tokens_per_s", by)


def _decoding_speed(*by: str, B: int, context: int = 8192) -> Callable[[Figures], float]:
    def measured(of: Figures) -> float:
        ours = of.decoding("tokens_per_s", "retnet", context=context, B=B)
        return ours / of.decoding("tokens_per_s", *by, context=context, B=B)

    return measured


def _prompt_speed(of: Figures) -> float:
    ours, theirs = (
        of.best("prefill/prompt", "tokens_per_s", (by,), T=8192) for by in ("retnet", "llama.cpp")
    )
    return ours / theirs


def _rows(B: int) -> str:
    return f"{B} row{'s' * (B != 1)}"


TARGETS = (
    Target("training: speed / transformers' Llama", 2.2, True, _training_speed("transformers")),
    Target("training: speed / torchscale", 1.4, True, _training_speed("torchscale")),
    Target(
        "training: share of the matrix-product peak",
        0.6,
        True,
        lambda of: of.training("share_of_matmul"),
    ),
    Target(
        "training: memory / transformers' Llama",
        0.5,
        False,
        lambda of: (
            of.training("peak_over_start_mib") / of.training("peak_over_start_mib", "transformers")
        ),
    ),
    Target(
        "training: speed at 2,048 and 65,536 tokens, off that at 8,192",
        0.1,
        False,
        lambda of: of.flatness("train/step", (8192, 2048, 65_536), precision="bfloat16"),
    ),
    *(
        Target(
            f"decoding, {_rows(B)}: speed / llama.cpp",
            wanted,
            True,
            _decoding_speed("llama.cpp", B=B),
        )
        for B, wanted in ((1, 3.0), (8, 5.0))
    ),
    *(
        Target(
            f"decoding, {_rows(B)}: speed / fastest attention in PyTorch",
            wanted,
            True,
            _decoding_speed(*PYTORCH, B=B),
        )
        for B, wanted in ((1, 4.0), (8, 10.0))
    ),
    *(
        Target(
            f"decoding, {_rows(B)}: speed / torchscale",
            2.0,
            True,
            _decoding_speed("torchscale", B=B),
        )
        for B in (1, 8)
    ),
    *(
        Target(
            f"decoding, {_rows(B)}: share of the reading speed",
            0.5,
            True,
            lambda of, B=B: of.share_of_fastest(B),
        )
        for B in (1, 8)
    ),
    *(
        Target(
            f"decoding after 512, {_rows(B)}: speed / llama.cpp",
            1.0,
            True,
            _decoding_speed("llama.cpp", B=B, context=512),
        )
        for B in (1, 8)
    ),
    Target("prompt of 8,192: speed / llama.cpp", 5.0, True, _prompt_speed),
    Target(
        "prompt of 1,000,000: speed of its second half, off that at 8,000",
        0.1,
        False,
        lambda of: of.flatness("prefill/on", (8_000, 1_000_000)),
    ),
)


def targets_table(records: Iterable[Record]) -> Table:
    """Every promise with its figure, of each model that has one."""
    records = [
        r
        for r in records
        if r.bench in ("train/step", "prefill/prompt", "prefill/on", "decode/step")
    ]
    by_bench = dict.fromkeys(record.bench for record in records)
    found = [
        record
        for bench in by_bench
        for record in latest((r for r in records if r.bench == bench), *FIELDS)
    ]
    rows = []
    for target in TARGETS:
        for model in sorted({str(record.case["model"]) for record in found}, reverse=True):
            try:
                value = target.measured(Figures(found, model))
            except LookupError:
                continue
            wanted = f"{'at least' if target.at_least else 'at most'} {target.wanted:g}"
            met = "yes" if target.met(value) else "no"
            rows.append((f"{target.claim}, {model}", wanted, f"{value:.2f}", met))
    return Table("Targets", ("claim", "target", "measured", "met"), rows, caption(records))


def _is(by: str, name: str) -> bool:
    """Whether a record's code is of this name; `retnet` alone is not the one with attention."""
    return by == name if name == "retnet" else by.startswith(name)
