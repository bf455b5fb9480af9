"""Score a model on your text files: perplexity per token, and bits per byte.

Every token is predicted from all of its file that comes before it, or from as much as the model
can read.

Example: retnet evaluate runs/demo notes.txt essays/
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from retnet.cli.options import Adapter, Checkpoint, parse


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    checkpoint: Checkpoint
    """Folder that `retnet demo` or `retnet train` wrote."""
    files: Annotated[Positional[tuple[str, ...]], arg(metavar="FILE ...")]
    """UTF-8 text, .jsonl (its field "text") and either as .gz, or folders of them."""
    adapter: Adapter = ""
    seq_len: Annotated[int | None, arg(metavar="N")] = None
    """Also score with a memory that is wiped every N tokens."""


def main(words: Sequence[str]) -> None:
    """Run `retnet evaluate`."""
    options = parse(Options, "evaluate", words, __doc__ or "")

    from rich.console import Console
    from rich.table import Table

    from retnet.cli.screen import token_bar
    from retnet.evaluate import read_files, score_stream
    from retnet.hub import load

    model, tokenizer = load(options.checkpoint, adapter=options.adapter or None)
    stream = read_files(tokenizer, options.files)
    table = Table("memory", "perplexity per token", "bits per byte", "tokens", "bytes")
    for seq_len in dict.fromkeys((model.max_tokens, options.seq_len or model.max_tokens)):
        memory = "carried along" if seq_len is None else f"{seq_len} tokens"
        with token_bar(f"scoring, memory {memory}") as progress:
            score = score_stream(model, stream, seq_len=seq_len, progress=progress)
        table.add_row(
            memory,
            f"{score.perplexity:.2f}",
            f"{score.bits_per_byte:.4f}",
            f"{score.num_tokens:,}",
            f"{score.num_bytes:,}",
        )
    Console().print(table)
