"""Convert a checkpoint of another program to ours, or ours to another's.

SOURCE is a folder or a file; TARGET is a folder that will appear when it is whole. The format is
recognised; `retnet convert --list` shows those there are. What the weights do not say, such as an
activation, is read from the source's config or asked for: give it with --set.

Example: retnet convert model.pt runs/theirs --set activation_fn=swish
Example: retnet convert runs/theirs back --to torchscale
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from retnet.cli.options import parse

if TYPE_CHECKING:
    from retnet.hub.foreign import Report


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    source: Annotated[Positional[str], arg(metavar="SOURCE")]
    """Checkpoint folder, or a .safetensors, .pt, .pth or .bin file."""
    target: Annotated[Positional[str], arg(metavar="TARGET")]
    """Folder to write."""
    to: Annotated[str, arg(metavar="FORMAT")] = "retnet"
    """What to write, see --list."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE")] = ()
    """An option of the source's that its weights do not tell."""
    tokenizer: Annotated[str, arg(metavar="PATH")] = ""
    """A tokenizer.json, its folder, or "bytes"; else the source's own."""
    dtype: Annotated[
        Literal["saved", "float32", "bfloat16", "float16", "float64"], arg(metavar="KIND")
    ] = "saved"
    """Of the weights: saved, float32, bfloat16, float16, float64."""
    force: FlagCreatePairsOff[bool] = False
    """Replace the model in a TARGET that exists."""


def main(words: Sequence[str]) -> None:
    """Run `retnet convert`."""
    if list(words) == ["--list"]:
        _print_formats()
        return
    options = parse(Options, "convert", words, __doc__ or "")
    answers = _answers(options.set)

    import torch

    from retnet.cli.screen import byte_bar
    from retnet.hub.foreign import convert

    with byte_bar("writing") as progress:
        report = convert(
            options.source,
            options.target,
            to=options.to,
            answers=answers,
            dtype=None if options.dtype == "saved" else getattr(torch, options.dtype),
            tokenizer=options.tokenizer,
            force=options.force,
            progress=progress,
        )
    _print_report(report, options.target)


def _answers(words: Sequence[str]) -> dict[str, str]:
    answers = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ValueError(f'--set {word} must be NAME=VALUE, as in "activation_fn=swish"')
        answers[name] = value
    return answers


def _print_formats() -> None:
    from rich.console import Console
    from rich.table import Table

    from retnet.hub.foreign import FORMATS

    table = Table("format", "checkpoints of", "file it writes")
    for name, format_ in FORMATS.items():
        table.add_row(name, format_.title, format_.file)
    Console().print(table)


def _print_report(report: "Report", target: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    said = Table("option", "value", "according to")
    for answer in report.answers:
        said.add_row(answer.name, str(answer.value), answer.origin)
    tensors = Table("theirs", "ours", "how often")
    for theirs, ours, count in report.mapping():
        tensors.add_row(theirs, ours, str(count))
    if report.answers:
        console.print(said)
    console.print(tensors)
    console.print(
        f"{report.version} → {report.target}: {target}, {report.num_parameters:,} parameters, "
        f"{report.dtypes()}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"tokenizer: {report.tokenizer}", soft_wrap=True, highlight=False, markup=False)
