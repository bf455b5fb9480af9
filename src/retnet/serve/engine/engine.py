"""The engine: many requests at once, at a memory that never grows."""

from contextlib import nullcontext
from itertools import count
from threading import Lock
from time import monotonic, perf_counter

import torch
from torch import Tensor

from retnet.model import Decoder, DecoderState, pack
from retnet.model.state import state_tensors, with_tensors
from retnet.ops.program.crew import undisturbed
from retnet.serve.engine.config import EngineConfig, EngineStats
from retnet.serve.engine.grammar import Grammars, ServedTokenizer
from retnet.serve.engine.limits import Limits, max_context
from retnet.serve.engine.pace import Pace
from retnet.serve.engine.pool import Pool, RowSize
from retnet.serve.engine.prefix import PrefixCache, borders
from retnet.serve.engine.reading import Job, Reader, Through
from retnet.serve.engine.request import (
    ErrorEvent,
    Event,
    FinishEvent,
    Handle,
    PromptEvent,
    Request,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from retnet.serve.engine.scheduler import Scheduler
from retnet.serve.engine.text import Text, logprob_of


class Engine:
    """Reads prompts and writes texts, all in one batch; no thread and no clock of its own.

    `submit` and `cancel` may be called from any thread, `step` from one.

    A request's tokens do not depend on who shares its batch, but for the last bits of the logits.

    Attributes:
        stats: see `EngineStats`.
        max_context: tokens of a text at most; None where there is no limit.
        grammars: compiles grammars for requests; made when first asked for.

    Example:
        >>> from retnet.data import Tokenizer
        >>> from retnet.model import preset
        >>> tokenizer = Tokenizer.bytes()
        >>> model = Decoder(preset("small-4m", vocab_size=tokenizer.vocab_size)).eval()
        >>> engine = Engine(model, tokenizer, EngineConfig(max_running=2))
        >>> handle = engine.submit(Request(prompt=(256, 72, 105), max_tokens=3))
        >>> events = []
        >>> while engine.busy:
        ...     events += engine.step()
        >>> events[-1].usage.completion_tokens
        3
    """

    def __init__(
        self, model: Decoder, tokenizer: ServedTokenizer, config: EngineConfig | None = None
    ) -> None:
        """Make an engine that is idle.

        Args:
            model: in evaluation mode.
            tokenizer: the model's.
            config: see `EngineConfig`.

        Raises:
            ValueError: the tokenizer has more tokens than the model, or `max_context` is more than
                the model can read.
        """
        self.config = config or EngineConfig()
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens and the model knows "
                f"{model.config.vocab_size}; take the tokenizer that it was trained with"
            )
        self.model = model if self.config.weights is None else pack(model, self.config.weights)
        self.model.eval()
        self.tokenizer = tokenizer
        self._size = RowSize.of(self.model)
        self.max_context = max_context(self.model, self.config.max_context, self._size)
        self.stats = EngineStats(
            pool_bytes=self.config.max_running * self._size.bytes(self.max_context)
        )
        self._limits = Limits(
            tokenizer.vocab_size, self.config.max_running, self.max_context, self._size
        )
        self._pool = Pool(self.model, self._size.growing)
        self._prefixes = PrefixCache(self.config.prefix_cache_bytes)
        self._scheduler = Scheduler(self.config.max_running, self.config.queue_size)
        most = self.config.idle_prefill_budget
        self._pace = Pace(self.config.max_running, most, self.config.prefill_budget)
        self._reader = Reader(self.model, self._size.growing, self._prefixes, self.stats)
        self._has_read = False  # in the last step
        self._jobs: dict[Handle, Job] = {}
        self._cancelled: set[Handle] = set()
        self._handles = count()
        self._lock = Lock()
        self._grammars: Grammars | None = None
        self._last_finish, self._finish_interval_s = monotonic(), 1.0

    @property
    def grammars(self) -> Grammars:
        """See the class.

        Raises:
            ValueError: llguidance is not installed.
        """
        if self._grammars is None:
            self._grammars = Grammars(self.tokenizer)
        return self._grammars

    def state_bytes(self, tokens: int) -> int:
        """Of the state of a text that has so many tokens."""
        return self._size.bytes(tokens)

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._jobs)

    def submit(self, request: Request) -> Handle:
        """Put a request into the queue.

        Raises:
            QueueFull: as many as may are waiting.
            ValueError: the request cannot be served; why.
        """
        self._limits.check(request)
        handle = Handle(next(self._handles))
        grammar = request.grammar
        texts = [
            Text(
                handle,
                i,
                request,
                self.tokenizer,
                None if grammar is None else self.grammars.start(grammar),
            )
            for i in range(request.num_samples)
        ]
        job = Job(handle, request, texts)
        at = borders(len(request.prompt), request.marks) if self._caches(request) else []
        job.borders = set(at)
        with self._lock:
            retry = min(max(1.0, self._finish_interval_s), 60.0)
            self._scheduler.add(handle, request.num_samples, len(request.prompt), at, retry)
            self._jobs[handle] = job
            self.stats.waiting = self._scheduler.num_waiting
        return handle

    def cancel(self, handle: Handle) -> None:
        """Call a request off: it says nothing more, and the next step begins without it."""
        with self._lock:
            if handle in self._jobs:
                self._cancelled.add(handle)

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Read a piece of the prompts, and write the next token of every text.

        Returns:
            What there is to tell, in order; nothing when the engine is idle.
        """
        begin = perf_counter()
        self._schedule()
        if not self._reader.reads and not self._pool.owners:
            if self.stats.running:  # the last ones were cancelled
                self._count(perf_counter() - begin)
            return []
        events: list[Event] = []
        texts: list[Text] = []
        logits: list[Tensor] = []
        entering: dict[Text, DecoderState] = {}
        if self._pool.owners:
            owners, predicted = self._pool.step({t: t.unread for t in self._pool.owners})
            going = [i for i, text in enumerate(owners) if text.finish_reason is None]
            for text in owners:
                if text.finish_reason is not None:  # it was only here to read its last token
                    events.append(self._finish(text, self._pool.state_of(text)))
            texts += [owners[i] for i in going]
            logits.append(predicted if len(going) == len(owners) else predicted[going])
        before, rows, reads = perf_counter(), len(self._pool.owners), self._reader.reads
        through = self._read()
        reading = perf_counter() - before
        for job, predicted in through:
            assert job.state is not None
            if job.request.echo and job.request.logprobs is not None:
                told = tuple(job.prompt_logprobs)
                events.append(PromptEvent(handle=job.handle, logprobs=told))
            for text in list(job.texts):
                if text.finish_reason is None:
                    entering[text] = job.state
                    texts.append(text)
                    logits.append(predicted[None])
                else:  # max_tokens is 0
                    events.append(self._finish(text, job.state))
            job.state = None
        if texts:
            compiled = self.model.compiled_steps is not None
            with undisturbed() if compiled else nullcontext():
                together = logits[0] if len(logits) == 1 else torch.cat(logits)
                events += self._write(texts, together, entering)
        self._pool.enter(list(entering), list(entering.values()))
        took = perf_counter() - begin
        if rows:
            self._pace.wrote(rows, took - reading, quiet=not (reads or self._has_read))
        self._has_read = reads
        self._count(took)
        return events

    def _schedule(self) -> None:
        with self._lock:
            for handle in self._cancelled:
                if (job := self._jobs.pop(handle, None)) is not None:
                    job.cancelled = True
                    for text in job.texts:
                        self._pool.leave(text)
                    self._scheduler.remove(handle)
                    self.stats.requests_cancelled += 1
            if self._cancelled:
                self._reader.drop()
            self._cancelled.clear()
            for key in self._scheduler.admit():
                self._begin(self._jobs[Handle(key)])
            if not self._reader.reads:
                writing = bool(self._pool.owners)
                budget = self._pace.budget if writing else self.config.idle_prefill_budget
                chunks = self._scheduler.plan(budget)
                if chunks:
                    self._reader.begin([(chunk, self._jobs[Handle(chunk.key)]) for chunk in chunks])

    def _begin(self, job: Job) -> None:
        """Find where a request's reading starts."""
        request = job.request
        if request.state is not None:
            device = self.model.embed_tokens.weight.device
            tensors = state_tensors(request.state)
            moved = {name: leaf.to(device) for name, leaf in tensors.items()}
            job.state = with_tensors(request.state, moved)
        elif self._caches(request):
            job.cached, job.state = self._prefixes.longest(request.prompt)
            self._scheduler.skip(job.handle, job.cached)
            self.stats.prefix_lookups += 1
            self.stats.prefix_hits += job.cached > 0
            self.stats.tokens_cached += job.cached
        if job.state is None:
            job.state = self._size.empty

    def _caches(self, request: Request) -> bool:
        """Whether the prefix cache serves a request: not where every token must be looked at."""
        told = request.echo and request.logprobs is not None
        return bool(self.config.prefix_cache_bytes) and request.state is None and not told

    def _read(self) -> list[Through]:
        """Read on in the pass; return the requests that are through, once it has ended."""
        reader, writing = self._reader, bool(self._pool.owners)
        if not reader.reads:
            return []
        if self.model.compiled_steps is not None:
            self.model.compiled_steps.rest()
        spent = last = reader.go_on()
        while reader.reads and not (writing and not self._pace.allows(spent + last)):
            last = reader.go_on()
            spent += last
        if reader.reads:
            return []
        if writing:
            self._pace.read(reader.tokens, reader.parts)
        return [through for through in reader.through() if not through.job.cancelled]

    def _write(
        self, texts: list[Text], logits: Tensor, entering: dict[Text, DecoderState]
    ) -> list[Event]:
        """Choose a token for each text; those that end leave, or do not enter at all."""
        events: list[Event] = []
        for text, token, told in self._choose(texts, logits, events):
            self.stats.tokens_generated += 1
            piece = text.take(token)
            if text.unread is not None:
                event = TokenEvent(
                    handle=text.handle, sample=text.sample, text=piece, token=token, logprob=told
                )
                events.append(event)
                piece = ""
            if text.finish_reason is None or (text.request.keep_state and text.unread is not None):
                continue
            state = entering.pop(text, None)
            if state is None and text.request.keep_state:
                state = self._pool.state_of(text)
            events.append(self._finish(text, state, piece))
        for text in texts:
            if text.handle not in self._jobs or text not in self._jobs[text.handle].texts:
                entering.pop(text, None)  # it failed
        return events

    def _choose(
        self, texts: list[Text], logits: Tensor, events: list[Event]
    ) -> list[tuple[Text, int, TokenLogprob | None]]:
        scores = logits.float()
        if scores.shape[1] > self.tokenizer.vocab_size:
            scores = scores[:, : self.tokenizer.vocab_size]
        plain = scores
        if any(text.changes_scores for text in texts):
            scores = scores.clone()
        good = []
        for row, text in enumerate(texts):
            try:
                if text.changes_scores:
                    text.prepare(scores[row])
            except ValueError as error:
                events.append(self._fail(text, str(error)))
            else:
                good.append(row)
        chosen = [texts[row] for row in good]
        rows = scores if len(good) == len(texts) else scores[good]
        try:
            tokens = Text.choose(chosen, rows) if chosen else []
        except ValueError:  # some rows offer no token
            offers = rows.amax(-1).isfinite().tolist()
            for text, offered in zip(chosen, offers, strict=True):
                if not offered:
                    events.append(self._fail(text, _no_token(text)))
            good = [row for row, offered in zip(good, offers, strict=True) if offered]
            chosen = [texts[row] for row in good]
            tokens = Text.choose(chosen, scores[good]) if chosen else []
        return [
            (text, token, _told(text, token, plain[row]))
            for row, text, token in zip(good, chosen, tokens, strict=True)
        ]

    def _finish(self, text: Text, state: DecoderState | None, piece: str = "") -> FinishEvent:
        assert text.finish_reason is not None
        job = self._jobs[text.handle]
        usage = Usage(len(job.request.prompt), job.cached, len(text.reply.tokens))
        self._end(text)
        return FinishEvent(
            handle=text.handle,
            sample=text.sample,
            text=piece,
            finish_reason=text.finish_reason,
            usage=usage,
            state=state if text.request.keep_state else None,
        )

    def _fail(self, text: Text, message: str) -> ErrorEvent:
        self.stats.texts_failed += 1
        self._end(text)
        return ErrorEvent(handle=text.handle, sample=text.sample, message=message)

    def _end(self, text: Text) -> None:
        self._pool.leave(text)
        with self._lock:
            job = self._jobs[text.handle]
            job.texts.remove(text)
            self._scheduler.release(text.handle)
            if not job.texts:
                del self._jobs[text.handle]
                self.stats.requests_finished += 1
                now = monotonic()
                interval = now - self._last_finish
                self._finish_interval_s += 0.2 * (interval - self._finish_interval_s)
                self._last_finish = now

    def _count(self, seconds: float) -> None:
        stats = self.stats
        stats.steps += 1
        stats.step_seconds += seconds
        stats.last_step_seconds = seconds
        stats.running = len(self._pool.owners)
        stats.prefill_budget = self._pace.budget
        with self._lock:
            stats.waiting = self._scheduler.num_waiting
            stats.rows = self._scheduler.num_rows


def _told(text: Text, token: int, logits: Tensor) -> TokenLogprob | None:
    num_top = text.request.logprobs
    return None if num_top is None else logprob_of(token, logits.log_softmax(-1), num_top)


def _no_token(text: Text) -> str:
    if text.request.grammar is not None or text.request.logit_bias:
        return "no token is left to choose: the grammar allows none, or the logit_bias forbids all"
    return "the model's logits are not finite: it diverged, or overflowed in its precision"
