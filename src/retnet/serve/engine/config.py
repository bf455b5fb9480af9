"""What the engine may use, and what it has done."""

from dataclasses import dataclass

from retnet.ops.packed_linear import Weights


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What the engine may use.

    Attributes:
        max_running: texts at most that are read or written at once; the others wait.
        queue_size: requests that may wait.
        prefill_budget: tokens of prompts read in one step while texts are written: what these
            wait for between two tokens. None: as many as may be, learnt as it goes, in passes that
            stop after some layers of the model, so that the gap between tokens does not double.
        idle_prefill_budget: tokens read in one step while no text is written; never more.
        prefix_cache_bytes: of states kept for prompts that begin alike; 0 keeps none.
        max_context: tokens of a text at most, prompt and completion and what its state has read.
            None: no limit where states have a constant size; where they grow, 4096 or what the
            model can read, if that is less.
        weights: how the model computes; None for as it is. See `retnet.model.pack`.

    Raises:
        ValueError: a value is outside its range.
    """

    max_running: int = 16
    queue_size: int = 64
    prefill_budget: int | None = None
    idle_prefill_budget: int = 1024
    prefix_cache_bytes: int = 1 << 28
    max_context: int | None = None
    weights: Weights | None = None

    def __post_init__(self) -> None:
        for name in ("max_running", "queue_size", "max_context"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        for name in ("prefill_budget", "idle_prefill_budget"):
            value = getattr(self, name)
            if value is not None and value < self.max_running:
                raise ValueError(
                    f"{name} ({value}) must be at least max_running "
                    f"({self.max_running}), so that every prompt gets on in every step"
                )
        if self.prefix_cache_bytes < 0:
            raise ValueError(f"prefix_cache_bytes ({self.prefix_cache_bytes}) must not be negative")


@dataclass(kw_only=True)
class EngineStats:
    """Counters since the start, and how things stand.

    Attributes:
        running: texts being written.
        waiting: requests in the queue.
        prefill_budget: tokens of prompts that a pass reads now while texts are written.
        rows: texts that hold a place, being read or written; `max_running` at most.
        tokens_read: of prompts, not counting those that the prefix cache saved.
        tokens_cached: those.
        tokens_generated: chosen.
        prefix_lookups: prompts that the prefix cache was asked for.
        prefix_hits: of these, how many it knew the beginning of.
        requests_finished: requests whose texts all ended, well or not.
        requests_cancelled: requests that were called off.
        texts_failed: texts that ended with an error.
        steps: done.
        step_seconds: all steps together.
        last_step_seconds: the last one.
        pool_bytes: what states of `max_running` texts take at most. While a step computes new
            states there is a second copy, of some layers or all.
        prefix_bytes: what the prefix cache holds.
    """

    running: int = 0
    waiting: int = 0
    rows: int = 0
    prefill_budget: int = 0
    tokens_read: int = 0
    tokens_cached: int = 0
    tokens_generated: int = 0
    prefix_lookups: int = 0
    prefix_hits: int = 0
    requests_finished: int = 0
    requests_cancelled: int = 0
    texts_failed: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    last_step_seconds: float = 0.0
    pool_bytes: int = 0
    prefix_bytes: int = 0
