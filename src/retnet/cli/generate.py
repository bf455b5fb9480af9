"""Stream text that continues yours, at constant memory.

Standard output is the text alone, for pipes; a terminal also shows the prompt.

Example: retnet generate runs/demo --prompt "def " --seed 1
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from tyro.conf import FlagCreatePairsOff, UseAppendAction, arg

from retnet.cli.options import (
    Adapter,
    Checkpoint,
    SamplingOptions,
    WeightsChoice,
    packed,
    parse,
)

if TYPE_CHECKING:
    from retnet.model.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Options:
    """See the module."""

    checkpoint: Checkpoint
    """Folder of a model."""
    adapter: Adapter = ""
    weights: WeightsChoice = "saved"
    prompt: Annotated[str, arg(metavar="TEXT")] = ""
    """What to continue; "-": standard input."""
    max_tokens: Annotated[int, arg(metavar="N")] = 200
    """Tokens to write at most."""
    stop: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="TEXT")] = ()
    """End before this text."""
    num_samples: Annotated[int, arg(metavar="N")] = 1
    """Texts to write, of one prompt."""
    ids: FlagCreatePairsOff[bool] = False
    """Read and write token ids, as "5 17"."""
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    """How to choose tokens."""


def main(words: Sequence[str]) -> None:
    """Run `retnet generate`."""
    options = parse(Options, "generate", words, __doc__ or "")
    sampling = options.sampling.sampling()  # refused before anything slow

    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    if options.ids:
        _continue_ids(options, prompt, sampling)
        return

    from retnet.cli.pace import Pace
    from retnet.cli.screen import note, show_piece, show_prompt
    from retnet.hub import load
    from retnet.model.generation import generate

    model, tokenizer = load(options.checkpoint, adapter=options.adapter or None)
    model = packed(model, options.weights)
    pace = Pace()

    def show(_prompt: int, sample: int, piece: str) -> None:
        pace.begin()
        if sample == 0:  # the others are written meanwhile, and shown after it
            show_piece(piece)

    show_prompt(prompt)
    [samples] = generate(
        model,
        tokenizer,
        [prompt],
        max_tokens=options.max_tokens,
        sampling=sampling,
        stop=options.stop,
        num_samples=options.num_samples,
        on_text=show,
    )
    pace.end()
    print()
    for number, sample in enumerate(samples[1:], 2):
        print(f"--- {number} of {len(samples)} ---")
        show_prompt(prompt)
        show_piece(f"{sample.text}\n")
    note(pace.report(model, [len(sample.tokens) for sample in samples]))


def _continue_ids(options: Options, prompt: str, sampling: "Sampling") -> None:
    """Print ids that continue ids: for a model whose tokenizer is not at hand."""
    import torch

    from retnet.hub import load_checkpoint
    from retnet.model.decoding import Decoding, prefill

    if options.stop or options.num_samples != 1:
        raise ValueError("--ids goes with neither --stop nor --num-samples; leave these out")
    words = prompt.replace(",", " ").split()
    if not words or not all(word.isdecimal() for word in words):
        raise ValueError(f'--prompt ("{prompt}") must be token ids with --ids, as in "5 17"')
    model, _ = load_checkpoint(options.checkpoint, adapter=options.adapter or None)
    ids, vocab_size = torch.tensor([[int(word) for word in words]]), model.config.vocab_size
    if ids.max() >= vocab_size:
        raise ValueError(f"--prompt has id {ids.max()}, and the model knows 0 to {vocab_size - 1}")
    model = packed(model, options.weights)
    decoding = Decoding(model, *prefill(model, ids), sampling)
    for _ in range(options.max_tokens):
        print(int(next(decoding)), end=" ", flush=True)
    print()
