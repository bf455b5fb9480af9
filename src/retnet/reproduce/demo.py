"""The demo: the whole story of a small model in about two minutes, from text to picture."""

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from retnet.bench import FormRow, form_disagreement
from retnet.data import DataConfig, Tokenizer, TokenizerConfig
from retnet.evaluate import (
    NGram,
    gzip_bits,
    key_value_cache_bytes,
    score_files,
    state_bytes_per_text,
    xz_bits,
)
from retnet.hub import from_dict, load, load_toml, write_atomic
from retnet.model import Decoder, preset
from retnet.model.generation import stream
from retnet.model.sampling import Sampling
from retnet.reproduce import demo_tables as tables
from retnet.reproduce.budget import fit, step_seconds, with_steps
from retnet.reproduce.corpus import PythonCorpus, write_corpus
from retnet.reproduce.demo_picture import draw
from retnet.train import RunConfig, RunSection, TrainSection, read_metrics, train

SMALL = preset("small-1m")
MODEL = replace(SMALL, layers=(replace(SMALL.layers[0], repeat=3),))
"""A layer less: with so little time, text read counts more than depth."""

VOCAB_SIZE = 2048
TRAIN = TrainSection(
    steps=1000,
    batch_size=4,
    seq_len=256,
    learning_rate=6e-3,
    decay_to=0.02,
    eval_tokens=16384,
    sample_tokens=0,
)
STEPS_ON_A_GPU = 2000
"""A GPU waits for Python at this size, so its speed tells nothing; this many take a minute."""

PROMPT = '"""Read a file."""\n\nimport os\n\n\ndef '
SAMPLING = Sampling(temperature=0.8, top_p=0.95, seed=0)
SAMPLE_TOKENS = 200
FORM_TOKENS = 256
TEXT_LENGTHS = (1_000, 10_000, 100_000, 1_000_000)


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What may be changed about the demo.

    Attributes:
        dir: the run's folder; a demo that is already there is gone on with, or shown again.
        seed: of the first weights and the order of the text.
        seconds: of training; the number of steps follows from this machine's speed.
        steps: of training, in place of seconds.
        fresh: delete a demo that is already in `dir`.
        library: Python files to learn from, in place of the standard library.
    """

    dir: Path = Path("runs/demo")
    seed: int = 0
    seconds: float = 105.0
    steps: int | None = None
    fresh: bool = False
    library: Path | None = None


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found; `demo.json` in its folder holds the same.

    Attributes:
        bits_per_byte: of the held-out text, by who predicted it.
        sample: generated text, prompt included.
        forms: the forms' disagreement on the trained model.
        text_lengths: tokens, for `cache_bytes`.
        state_bytes: of one text, however long.
        cache_bytes: of an equally wide and deep Transformer's key-value cache, bfloat16.
    """

    bits_per_byte: dict[str, float]
    sample: str
    forms: list[FormRow]
    text_lengths: tuple[int, ...]
    state_bytes: int
    cache_bytes: tuple[int, ...]


def run_demo(options: DemoOptions, console: Console | None = None) -> DemoResult | None:
    """Gather text, train, score, write, compare the forms, weigh the memory, draw.

    Args:
        options: see there.
        console: where to tell the story; None is standard output.

    Returns:
        What was found; None if training was asked to stop before its end.

    Raises:
        ValueError: the folder holds something else, or a setting is outside its range.
    """
    console = console or Console()
    began = time.perf_counter()
    _clear(options)

    tables.heading(console, 1, "Text")
    corpus = _corpus(options)
    tables.about_corpus(console, corpus)

    tables.heading(console, 2, "Training")
    config = _config(options, corpus, console)
    if not train(config, console=console).finished:
        return None
    model, tokenizer = load(options.dir)

    tables.heading(console, 3, "How well it predicts text that it has not seen")
    bits = _bits_per_byte(model, tokenizer, corpus)
    tables.scores(console, bits, corpus)

    tables.heading(console, 4, "What it writes")
    sample = _write_sample(model, tokenizer, console)

    tables.heading(console, 5, "One function, three forms")
    forms = _forms(model, tokenizer, corpus)
    tables.forms(console, forms, FORM_TOKENS)

    tables.heading(console, 6, "What it keeps of a text")
    result = DemoResult(
        bits_per_byte=bits,
        sample=sample,
        forms=forms,
        text_lengths=TEXT_LENGTHS,
        state_bytes=state_bytes_per_text(model),
        cache_bytes=tuple(
            key_value_cache_bytes(model.config.num_layers, model.config.d_model, length)
            for length in TEXT_LENGTHS
        ),
    )
    tables.memory(console, result.text_lengths, result.state_bytes, result.cache_bytes)

    tables.heading(console, 7, "Picture")
    _save(result, options.dir, console)
    seconds = time.perf_counter() - began
    tables.what_next(console, options.dir, config.train.steps, seconds)
    return result


def _clear(options: DemoOptions) -> None:
    """Delete the demo that is there if asked to; refuse to touch anything else."""
    folder = options.dir
    if folder.exists() and any(folder.iterdir()) and not (folder / "corpus").is_dir():
        raise ValueError(
            f"dir ({folder}) holds something that is not a demo; name another folder with --dir"
        )
    if options.fresh and folder.exists():
        shutil.rmtree(folder)


def _corpus(options: DemoOptions) -> PythonCorpus:
    folder = options.dir / "corpus"
    # What is there is kept, even after an update of Python: a run must go on with its own text.
    return PythonCorpus.open(folder) or write_corpus(folder, options.library)


def _config(options: DemoOptions, corpus: PythonCorpus, console: Console) -> RunConfig:
    """The run that is there, or a new one that fits this machine."""
    saved = options.dir / "run.toml"
    if saved.exists():
        config = from_dict(RunConfig, load_toml(saved))
        if config.run.seed != options.seed:
            raise ValueError(
                f"seed ({options.seed}) must stay {config.run.seed}, with which the demo in "
                f"{options.dir} began; add --fresh to begin again, or name another --dir"
            )
        steps = options.steps or config.train.steps
        return replace(
            config,
            run=replace(config.run, dir=str(options.dir)),
            data=replace(config.data, train=(str(corpus.train),), valid=(str(corpus.valid),)),
            train=replace(config.train, steps=steps),
        )
    return RunConfig(
        run=RunSection(dir=str(options.dir), seed=options.seed),
        data=DataConfig(
            train=(str(corpus.train),),
            valid=(str(corpus.valid),),
            tokenizer=TokenizerConfig(vocab_size=VOCAB_SIZE),
        ),
        model=MODEL,
        train=_train_section(options, console),
    )


def _train_section(options: DemoOptions, console: Console) -> TrainSection:
    if torch.cuda.is_available():
        steps = options.steps or STEPS_ON_A_GPU
        return with_steps(replace(TRAIN, precision="bfloat16"), steps)
    cost = step_seconds(replace(MODEL, vocab_size=VOCAB_SIZE), TRAIN)
    section = fit(TRAIN, options.seconds, cost)
    if options.steps is not None:
        section = with_steps(section, options.steps)
    tables.about_speed(console, cost, section)
    return section


def _bits_per_byte(model: Decoder, tokenizer: Tokenizer, corpus: PythonCorpus) -> dict[str, float]:
    held_out = corpus.text(corpus.valid)
    bits = {
        "gzip -9": gzip_bits(held_out),
        "xz -9e": xz_bits(held_out),
        "5-gram": NGram(corpus.text(corpus.train)).bits(held_out),
    }
    ours = score_files(model, tokenizer, [corpus.valid]).bits_per_byte
    return {name: n / len(held_out) for name, n in bits.items()} | {"RetNet": ours}


def _write_sample(model: Decoder, tokenizer: Tokenizer, console: Console) -> str:
    """Show the text as it comes."""
    tables.write(console, PROMPT, style="bold")
    pieces = [PROMPT]
    for piece in stream(model, tokenizer, PROMPT, max_tokens=SAMPLE_TOKENS, sampling=SAMPLING):
        tables.write(console, piece)
        pieces.append(piece)
    console.print()
    return "".join(pieces)


def _forms(model: Decoder, tokenizer: Tokenizer, corpus: PythonCorpus) -> list[FormRow]:
    with corpus.valid.open(encoding="utf-8") as lines:
        text = json.loads(next(lines))["text"]
    ids = [tokenizer.bos_id, *tokenizer.encode(text)][:FORM_TOKENS]
    return form_disagreement(model, torch.tensor([ids]))


def _save(result: DemoResult, folder: Path, console: Console) -> None:
    data = asdict(result) | {"forms": [row._asdict() for row in result.forms]}
    text = json.dumps(data, indent=2) + "\n"
    write_atomic(folder / "demo.json", lambda path: path.write_text(text, encoding="utf-8"))
    picture = folder / "demo.png"
    try:
        draw(result, read_metrics(folder / "metrics.jsonl"), picture)
    except ModuleNotFoundError:
        tables.say(
            console, "Not drawn: matplotlib is missing; pip install 'retnet[plot]' brings it."
        )
    else:
        tables.say(console, f"The loss, these scores and this memory: {picture}")
