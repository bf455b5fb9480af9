"""Everything that is asked about a checkpoint, in one go."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retnet.data import Tokenizer, TokenStream
from retnet.evaluate.context import ContextGrowth, score_contexts
from retnet.evaluate.heads import HeadMemory, score_heads
from retnet.evaluate.memory import state_bytes_per_text, state_grows
from retnet.evaluate.probes import PROBES, Probe, ProbeScore, score_probe
from retnet.evaluate.probes.familiar import FamiliarScore, score_familiar
from retnet.evaluate.probes.in_text import (
    NeedleScore,
    RepeatScore,
    score_needles,
    score_repeats,
)
from retnet.evaluate.probes.probe import check_vocabulary
from retnet.evaluate.tasks import TaskScore, score_tasks, task_files
from retnet.evaluate.text import Progress, TextScore, count_words, find_texts, score_stream
from retnet.model import Decoder

Bar = Callable[[str, str], AbstractContextManager[Progress]]
"""From what is done, and its unit, to a function that is told how far it is."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to find out.

    Attributes:
        files: texts, see `retnet.evaluate.text.find_texts`.
        text_field: see there.
        split_on: see there.
        seq_len: also score with windows of so many tokens.
        stride: from one such window to the next; None: as long as the windows.
        words: whether to tell the perplexity per word.
        contexts: lengths at which to predict the same tokens; empty: do not.
        memory: length of passages for repeated text, hidden numbers and the memory of heads; 0: do
            not.
        probes: names of probes that the model was trained on.
        tasks: a folder with the files of tasks.
        shots: examples in front of an item of a task.
        limit: items of a task; None: all.
        beside_hf: whether to ask tasks through transformers, too, and compare.
    """

    files: tuple[str, ...] = ()
    text_field: str = "text"
    split_on: str = ""
    seq_len: int | None = None
    stride: int | None = None
    words: bool = False
    contexts: tuple[int, ...] = ()
    memory: int = 0
    probes: tuple[str, ...] = ()
    tasks: Path | None = None
    shots: int = 0
    limit: int | None = None
    beside_hf: bool = False

    def __post_init__(self) -> None:
        for name in self.probes:
            if name not in PROBES:
                raise ValueError(f'"{name}" is no probe; choose among {", ".join(PROBES)}')
        needs_text = self.words or self.contexts or self.memory or self.seq_len or self.stride
        if not self.files and (needs_text or not (self.probes or self.tasks)):
            raise ValueError("there is no file to read; name text files, or folders of them")
        if self.shots and self.tasks is None:
            raise ValueError(
                f"shots ({self.shots}) are of tasks; name their folder, or leave it out"
            )
        if self.beside_hf and self.tasks is None:
            raise ValueError("beside_hf compares scores of tasks; name their folder with tasks")
        if self.shots < 0 or (self.limit is not None and self.limit < 1):
            raise ValueError(
                f"shots ({self.shots}) must be at least 0, and limit ({self.limit}) 1; raise them"
            )


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """A score of all text with one kind of memory.

    Attributes:
        seq_len: tokens of a window; None: the state is carried along.
        stride: from one window to the next.
        score: what came of it.
        word_perplexity: None where it was not asked for.
    """

    seq_len: int | None
    stride: int | None
    score: TextScore
    word_perplexity: float | None

    @property
    def memory(self) -> str:
        """In words."""
        if self.seq_len is None:
            return "carried along"
        if self.stride in (None, self.seq_len):
            return f"{self.seq_len} tokens"
        return f"{self.seq_len} tokens, a window every {self.stride}"


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """A score of one probe at one length."""

    name: str
    length: int
    chance: float
    score: ProbeScore


@dataclass(frozen=True, kw_only=True)
class BesideRow:
    """What the harness's own wrapper for transformers found.

    Attributes:
        scores: in the order of `Evaluation.tasks`.
        seconds: that its log-likelihoods took.
        our_seconds: that ours took.
    """

    scores: list[TaskScore]
    seconds: float
    our_seconds: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What was found out; parts that were not asked for are empty.

    Attributes:
        name: of the checkpoint.
        parameters: a tied head counted once.
        state_bytes: of one text after its first token.
        state_grows: whether it takes more after more tokens, without end.
        text: scores, the one with most memory first.
        contexts: losses at growing context.
        repeats: how passages are predicted again.
        familiar: losses of tokens that stood in the text before, and of others.
        needles: how numbers are kept, by depth.
        heads: the memory of each.
        probes: accuracies.
        tasks: scores.
        beside: the same by another program; None where it was not asked for.
    """

    name: str
    parameters: int
    state_bytes: int
    state_grows: bool
    text: list[TextRow] = field(default_factory=list)
    contexts: ContextGrowth | None = None
    repeats: list[RepeatScore] = field(default_factory=list)
    familiar: list[FamiliarScore] = field(default_factory=list)
    needles: list[NeedleScore] = field(default_factory=list)
    heads: list[HeadMemory] = field(default_factory=list)
    probes: list[ProbeRow] = field(default_factory=list)
    tasks: list[TaskScore] = field(default_factory=list)
    beside: BesideRow | None = None

    def as_json(self) -> dict[str, Any]:
        """For json.dumps: all of it, with what follows from the sums; no infinity, but null."""
        data = {"schema": 1, **asdict(self)}
        for row, own in zip(data["text"], self.text, strict=True):
            row["memory"] = own.memory
            row["score"] |= {
                "perplexity": own.score.perplexity,
                "bits_per_byte": own.score.bits_per_byte,
            }
        for row, probe in zip(data["probes"], self.probes, strict=True):
            score = probe.score
            row["score"] |= {"accuracy": score.accuracy, "standard_error": score.standard_error}
        for row, memory in zip(data["heads"], self.heads, strict=True):
            tokens = memory.decay_tokens
            row["decay_tokens"] = tokens if tokens is None or math.isfinite(tokens) else None
        return data


def evaluate(
    model: Decoder, tokenizer: Tokenizer, wanted: Wanted, *, name: str, bar: Bar
) -> Evaluation:
    """Find out all that is wanted.

    Args:
        model: put in evaluation mode.
        tokenizer: the model's.
        wanted: what.
        name: what to call the checkpoint.
        bar: shows progress.

    Raises:
        ValueError: see `Wanted` and the functions for its parts.
    """
    model.eval()
    if wanted.tasks is not None and find_spec("lm_eval") is None:
        raise ValueError("tasks need lm-evaluation-harness; pip install 'retnet[eval]' brings it")
    files = task_files(wanted.tasks) if wanted.tasks is not None else {}
    for probe in wanted.probes:  # before hours of work
        check_vocabulary(model, PROBES[probe])
    found: dict[str, Any] = {}
    if wanted.files:
        documents = find_texts(wanted.files, text_field=wanted.text_field, split_on=wanted.split_on)
        stream = TokenStream.from_texts(documents, tokenizer)
        words = count_words(documents) if wanted.words else None
        found |= _memories(model, tokenizer, stream, wanted, bar)  # the pickier come first
        found["text"] = _texts(model, stream, wanted, words, bar)
    found["probes"] = [row for probe in wanted.probes for row in _probe(model, PROBES[probe], bar)]
    if files:
        from retnet.evaluate.harness import RetNetLM

        with bar("asking tasks", "requests") as progress:
            lm = RetNetLM(model, tokenizer, progress=progress)
            found["tasks"] = score_tasks(lm, files, shots=wanted.shots, limit=wanted.limit)
        if wanted.beside_hf:
            with bar("asking transformers", "requests"):
                found["beside"] = _beside(model, tokenizer, files, wanted, lm.seconds)
    return Evaluation(
        name=name,
        parameters=model.num_parameters(),
        state_bytes=state_bytes_per_text(model),
        state_grows=state_grows(model),
        **found,
    )


def _beside(
    model: Decoder,
    tokenizer: Tokenizer,
    files: dict[str, Path],
    wanted: Wanted,
    our_seconds: float,
) -> BesideRow:
    from retnet.evaluate.beside import score_beside

    theirs = score_beside(model, tokenizer, files, shots=wanted.shots, limit=wanted.limit)
    return BesideRow(scores=theirs.scores, seconds=theirs.seconds, our_seconds=our_seconds)


def _texts(
    model: Decoder, stream: TokenStream, wanted: Wanted, words: int | None, bar: Bar
) -> list[TextRow]:
    kinds = dict.fromkeys(
        [(model.max_tokens, None), (wanted.seq_len or model.max_tokens, wanted.stride)]
    )
    rows = []
    for seq_len, stride in kinds:
        kind = "carried along" if seq_len is None else f"{seq_len} tokens"
        with bar(f"scoring, memory {kind}", "tokens") as progress:
            score = score_stream(model, stream, seq_len=seq_len, stride=stride, progress=progress)
        per_word = None if words is None else score.perplexity_per(words)
        rows.append(TextRow(seq_len=seq_len, stride=stride, score=score, word_perplexity=per_word))
    return rows


def _memories(
    model: Decoder, tokenizer: Tokenizer, stream: TokenStream, wanted: Wanted, bar: Bar
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if wanted.contexts:
        with bar("predicting from growing context", "tokens") as progress:
            found["contexts"] = score_contexts(
                model,
                stream,
                contexts=wanted.contexts,
                segment=min(128, wanted.contexts[0] // 2),
                progress=progress,
            )
    if wanted.memory:
        length = wanted.memory
        found["repeats"] = [score_repeats(model, stream, length=length)]
        found["familiar"] = score_familiar(model, stream, length=length)
        found["needles"] = score_needles(model, tokenizer, stream, length=length)
        with bar("exchanging memories", "heads") as progress:
            found["heads"] = score_heads(
                model, stream, before=length // 2, after=length - length // 2, progress=progress
            )
    return found


def _probe(model: Decoder, probe: Probe, bar: Bar) -> list[ProbeRow]:
    rows = []
    with bar(f"probing {probe.name}", "lengths") as progress:
        for number, length in enumerate(probe.test_lengths):
            progress(number, len(probe.test_lengths))
            score = score_probe(model, probe, length=length)
            rows.append(ProbeRow(name=probe.name, length=length, chance=probe.chance, score=score))
    return rows
