"""Score a model on your text, on probes of its memory, on tasks.

Every token is predicted from all of its file that comes before it, or from as much as the model
can read.

Example: retnet evaluate runs/demo notes.txt --contexts 512 2048 --report report.html
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from retnet.cli.options import Adapter, Checkpoint, parse

Number = Annotated[int | None, arg(metavar="N")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    checkpoint: Checkpoint
    """Folder that `retnet demo` or `retnet train` wrote."""
    files: Annotated[Positional[tuple[str, ...]], arg(metavar="[FILE ...]")] = ()
    """Text, .jsonl, .parquet, hf:NAME, folders."""
    adapter: Adapter = ""
    text_field: Annotated[str, arg(metavar="NAME")] = "text"
    """Field of a record with its text."""
    split_on: Annotated[str, arg(metavar="REGEX")] = ""
    """Where in a file documents begin."""
    seq_len: Number = None
    """Also wipe the memory every N tokens."""
    stride: Number = None
    """Begin those windows every N tokens."""
    words: bool = False
    """Also perplexity per WikiText word."""
    contexts: Annotated[tuple[int, ...], arg(metavar="N ...")] = ()
    """Predict the same tokens from N before."""
    memory: Annotated[int, arg(metavar="N")] = 0
    """Probe memory over N tokens of text."""
    probes: Annotated[tuple[str, ...], arg(metavar="NAME ...")] = ()
    """Probes that it was trained on."""
    tasks: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of hellaswag.jsonl and the like."""
    shots: Annotated[int, arg(metavar="N")] = 0
    """Examples in front of each item."""
    limit: Number = None
    """Items of each task."""
    beside_hf: bool = False
    """Ask tasks by transformers, too; compare."""
    json: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write all figures there."""
    report: Annotated[Path | None, arg(metavar="FILE")] = None
    """Write a page: .html or .md."""


def main(words: Sequence[str]) -> None:
    """Run `retnet evaluate`."""
    options = parse(Options, "evaluate", words, __doc__ or "")

    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness' bars: there is one of ours
    from functools import partial

    from rich.console import Console
    from rich.table import Table

    from retnet.cli.screen import note, token_bar
    from retnet.evaluate.evaluation import Wanted, evaluate
    from retnet.evaluate.report import check_report_path, write_report
    from retnet.evaluate.sections import sections
    from retnet.hub import load, write_atomic

    fields = Wanted.__dataclass_fields__
    wanted = Wanted(**{name: getattr(options, name) for name in fields})
    if options.report is not None:
        check_report_path(options.report)
    model, tokenizer = load(options.checkpoint, adapter=options.adapter or None)
    found = evaluate(model, tokenizer, wanted, name=options.checkpoint, bar=token_bar)
    console = Console()
    for section in sections(found):
        table = Table(*section.columns, title=section.title, title_justify="left")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)
        for line in section.notes:
            console.print(line, style="dim", markup=False, highlight=False)
    if options.json is not None:
        from json import dumps

        text = dumps(found.as_json(), indent=1, allow_nan=False) + "\n"
        write_atomic(options.json, partial(_write, text))
        note(f"all figures are in {options.json}")
    if options.report is not None:
        note(f"the report is {write_report(found, options.report)[0]}")


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")
