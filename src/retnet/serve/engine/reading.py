"""Reading prompts in passes that stop after each layer, so that texts are written in between."""

from collections.abc import Generator, Iterator, Sequence
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.model import Decoder, DecoderState, concat_rows, select_rows
from retnet.serve.engine.config import EngineStats
from retnet.serve.engine.pool import trimmed
from retnet.serve.engine.prefix import PrefixCache
from retnet.serve.engine.request import Handle, Request, TokenLogprob
from retnet.serve.engine.scheduler import Chunk
from retnet.serve.engine.text import Text, logprob_of


class Job:
    """A request on its way."""

    def __init__(self, handle: Handle, request: Request, texts: list[Text]) -> None:
        self.handle = handle
        self.request = request
        self.texts = texts  # those that have not ended
        self.borders: set[int] = set()
        self.state: DecoderState | None = None  # while it is read
        self.cached = 0
        self.prompt_logprobs: list[TokenLogprob | None] = [None]
        self.cancelled = False


class Through(NamedTuple):
    """A request whose prompt has been read.

    Attributes:
        job: it, with the state after its prompt.
        logits: of what follows.
    """

    job: Job
    logits: Tensor


class Reader:
    """One pass at a time over pieces of prompts.

    Attributes:
        tokens: of the pass.
        parts: seconds of each of its parts so far.
    """

    def __init__(
        self, model: Decoder, growing: dict[str, int], prefixes: PrefixCache, stats: EngineStats
    ) -> None:
        """Make a reader with nothing to read; `growing` is that of `RowSize`."""
        self._model = model
        self._growing = growing
        self._prefixes = prefixes
        self._stats = stats
        self._rest: Iterator[None] | None = None
        self._through: list[Through] = []
        self._jobs: list[Job] = []
        self.tokens = 0
        self.parts: list[float] = []

    @property
    def reads(self) -> bool:
        """Whether there is a pass that has not ended."""
        return self._rest is not None

    def begin(self, pieces: Sequence[tuple[Chunk, Job]]) -> None:
        """Begin a pass."""
        assert not self.reads
        self.tokens = sum(chunk.stop - chunk.start for chunk, _ in pieces)
        self.parts = []
        self._rest, self._through = self._pass(pieces), []
        self._jobs = [job for _, job in pieces]

    def drop(self) -> None:
        """End a pass that nobody waits for any more."""
        if all(job.cancelled for job in self._jobs):
            self._rest = None

    def go_on(self) -> float:
        """Do a part of the pass, a layer of some prompts; return the seconds that took."""
        assert self._rest is not None
        begin = perf_counter()
        if next(self._rest, self) is self:
            self._rest = None
        seconds = perf_counter() - begin
        self.parts.append(seconds)
        return seconds

    def through(self) -> list[Through]:
        """Requests that the pass that has ended has brought to the end of their prompts."""
        through, self._through = self._through, []
        return through

    def _pass(self, pieces: Sequence[tuple[Chunk, Job]]) -> Iterator[None]:
        for group in _alike(pieces):
            h, state = yield from self._together(group)
            for row, (chunk, job) in enumerate(group):
                if job.cancelled:
                    continue
                own = select_rows(state, [row]) if len(group) > 1 else state
                job.state = trimmed(own, self._growing)
                if chunk.stop in job.borders:
                    self._prefixes.keep(job.request.prompt[: chunk.stop], job.state)
                own_h = h[row, : chunk.stop - chunk.start]
                if job.request.echo and job.request.logprobs is not None:
                    self._tell_prompt(job, chunk, own_h)
                if chunk.stop == len(job.request.prompt):
                    self._through.append(Through(job, self._model.head(own_h[-1:])[0]))
                self._stats.tokens_read += chunk.stop - chunk.start
        self._stats.prefix_bytes = self._prefixes.num_bytes

    def _together(
        self, group: Sequence[tuple[Chunk, Job]]
    ) -> Generator[None, None, tuple[Tensor, DecoderState]]:
        device = self._model.embed_tokens.weight.device
        longest = max(chunk.stop - chunk.start for chunk, _ in group)
        tokens = torch.zeros(len(group), longest, dtype=torch.int64)
        valid = torch.zeros(len(group), longest, dtype=torch.bool)
        for row, (chunk, job) in enumerate(group):
            size = chunk.stop - chunk.start
            tokens[row, :size] = torch.tensor(job.request.prompt[chunk.start : chunk.stop])
            valid[row, :size] = True
        states = [job.state for _, job in group if job.state is not None]
        state = states[0] if len(group) == 1 else concat_rows(states)
        mask = None if bool(valid.all()) else valid.to(device)
        return (yield from self._model.hidden_by_layers(tokens.to(device), state, valid=mask))

    def _tell_prompt(self, job: Job, chunk: Chunk, h: Tensor) -> None:
        prompt, num_top = job.request.prompt, job.request.logprobs
        assert num_top is not None
        targets = prompt[chunk.start + 1 : chunk.stop + 1]
        log_probs = self._model.head(h[: len(targets)]).float().log_softmax(-1)
        pairs = zip(targets, log_probs, strict=True)
        job.prompt_logprobs += [logprob_of(token, row, num_top) for token, row in pairs]


def _alike(pieces: Sequence[tuple[Chunk, Job]]) -> list[list[tuple[Chunk, Job]]]:
    """Groups to read in one call each: no chunk is less than half as long as the longest."""
    groups: list[list[tuple[Chunk, Job]]] = []
    for piece in sorted(pieces, key=lambda piece: piece[0].start - piece[0].stop):
        size = piece[0].stop - piece[0].start
        if groups and 2 * size >= groups[-1][0][0].stop - groups[-1][0][0].start:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups
