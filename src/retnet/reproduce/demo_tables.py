"""How the demo looks on a terminal: headings, a sentence or two, and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from retnet.bench import FormRow
from retnet.evaluate import format_bytes
from retnet.reproduce.corpus import PythonCorpus
from retnet.train import TrainSection

NUM_PARTS = 7


def heading(console: Console, number: int, title: str) -> None:
    """Begin a part."""
    console.print()
    console.print(f"{number}/{NUM_PARTS}  {title}", style="bold cyan", highlight=False)


def say(console: Console, text: str, style: str = "") -> None:
    """Print a sentence; paths and numbers look as the rest."""
    console.print(text, style=style, markup=False, highlight=False)


def write(console: Console, text: str, style: str = "") -> None:
    """Print a piece of a generated text as it is, without a line end."""
    console.print(
        text, end="", style=style, markup=False, highlight=False, emoji=False, soft_wrap=True
    )


def about_corpus(console: Console, corpus: PythonCorpus) -> None:
    """Say what the text is."""
    train, valid = format_bytes(corpus.train_bytes), format_bytes(corpus.valid_bytes)
    say(
        console,
        f"{corpus.description[0].upper()}{corpus.description[1:]}: {corpus.num_documents} files, "
        f"{train} to learn from and {valid} held out, whole files chosen by their names. "
        "Nothing is downloaded.",
    )


def about_speed(console: Console, cost: Mapping[str, float], section: TrainSection) -> None:
    """Say why it is so many steps in this precision."""
    speeds = " and ".join(
        f"{section.tokens_per_step / seconds:,.0f} tokens/s in {name}"
        for name, seconds in cost.items()
    )
    say(console, f"Measured here: {speeds}. So {section.steps} steps in {section.precision}:")


def scores(console: Console, bits: Mapping[str, float], corpus: PythonCorpus) -> None:
    """Bits per byte, beside what each predictor knew beforehand."""
    table = _table("predicted by", "bits per byte", "learned beforehand from")
    learned = f"{format_bytes(corpus.train_bytes)} of other files"
    knew = {"gzip -9": "nothing", "xz -9e": "nothing", "5-gram": learned}
    for name, value in bits.items():
        best = "bold" if value == min(bits.values()) else ""
        table.add_row(
            name, f"{value:.3f}", knew.get(name, "the same, as far as time allowed"), style=best
        )
    console.print(table)
    say(
        console,
        "The same held-out bytes for all; less is better. The 5-gram predicts each byte from the "
        "four before it (modified Kneser-Ney). RetNet carries its state through each file.",
        "dim",
    )


def forms(console: Console, rows: Sequence[FormRow], num_tokens: int) -> None:
    """Largest differences, a line for each precision."""
    names = list(dict.fromkeys(row.form for row in rows))
    table = _table("computed in", *names, "any two forms")
    for dtype in dict.fromkeys(row.dtype for row in rows):
        group = {row.form: row for row in rows if row.dtype == dtype}
        apart = max(row.apart for row in group.values())
        table.add_row(dtype, *(f"{group[name].max_abs:.1e}" for name in names), f"{apart:.1e}")
    console.print(table)
    say(
        console,
        f"Largest difference of any logit, over {num_tokens} tokens of held-out text: of each form "
        "from the float64 recurrence, and between any two forms. One function, up to rounding.",
        "dim",
    )


def memory(
    console: Console, lengths: Sequence[int], state_bytes: int, caches: Sequence[int]
) -> None:
    """The state beside a cache that grows."""
    table = _table("tokens read", "RetNet's state", "key-value cache", "times as large")
    for length, cache in zip(lengths, caches, strict=True):
        ratio = f"{cache / state_bytes:,.0f}" if cache > state_bytes else "less"
        table.add_row(f"{length:,}", format_bytes(state_bytes), format_bytes(cache), ratio)
    console.print(table)
    say(
        console,
        "The state is float32. The cache is computed: of a Transformer as wide and as deep, in "
        "bfloat16, with keys and values of its own for every head.",
        "dim",
    )


def what_next(console: Console, folder: Path, steps: int, seconds: float) -> None:
    """End with what to type."""
    console.print()
    say(console, f"Done in {seconds:.0f} s. Now you:")
    for command in (
        f'retnet generate {folder} --prompt "def "',
        f"retnet chat {folder}",
        f"retnet evaluate {folder} {folder / 'corpus' / 'valid.jsonl'}",
        f"retnet train {folder / 'run.toml'} --train.steps {2 * steps}",
    ):
        # not wrapped: it is to be copied
        console.print(f"  {command}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=SIMPLE_HEAD, pad_edge=False)
    for name in others:
        table.add_column(name, justify="left" if name.endswith("from") else "right")
    return table
