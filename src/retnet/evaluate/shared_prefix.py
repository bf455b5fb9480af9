"""Log-likelihoods of many continuations, of which no shared beginning is read twice.

The choices of a question share its text, and questions with examples in front share those. Because
a state can be forked, each such text is read once: first what many requests begin with (`_visit`),
then what the choices of one question share (a stem), then what is left of each.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from retnet.evaluate.losses import LOGITS
from retnet.model import Decoder, DecoderState, select_rows

CALL_TOKENS = 4096
"""Of a batch, padding included."""

MIN_SHARED = 16
MIN_SHARERS = 8
"""Fewer tokens, or requests that share them, are not worth a call of their own."""


class Request(NamedTuple):
    """A text whose end is to be scored.

    Attributes:
        tokens: from BOS on.
        scored: how many of the last are scored: 1 at least, and not all.
        group: requests of one group are likely to begin alike.
    """

    tokens: list[int]
    scored: int
    group: Hashable


class Likelihood(NamedTuple):
    """Of the scored tokens.

    Attributes:
        log_probability: natural, of all together.
        greedy: whether each is the likeliest in its place.
    """

    log_probability: float
    greedy: bool


@dataclass(frozen=True)
class _Item:
    """Tokens to read, and whose they are: one request's inputs, or what several begin with."""

    tokens: list[int]
    members: list[int]


@torch.inference_mode()
def score_requests(
    model: Decoder,
    requests: Sequence[Request],
    *,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[Likelihood]:
    """Score the ends of texts.

    Args:
        model: in evaluation mode.
        requests: in any order.
        batch_size: most rows, and so most states, at a time.
        progress: called with requests done and in all.

    Raises:
        ValueError: a request has nothing to score, or nothing before what is scored.
    """
    for number, request in enumerate(requests):
        if not 1 <= request.scored < len(request.tokens):
            raise ValueError(
                f"request {number} scores {request.scored} of {len(request.tokens)} tokens; it "
                "must score one at least, and leave one to begin with"
            )
    scorer = _Scorer(model, requests, batch_size, progress)
    items = sorted(_items(requests), key=lambda item: item.tokens)
    if items:
        scorer.visit(items, None, 0)
    return [scorer.found[number] for number in range(len(requests))]


def _items(requests: Sequence[Request]) -> Iterator[_Item]:
    """What to read first for each group: a stem, or whole inputs where little is shared."""
    groups: dict[Hashable, list[int]] = {}
    for number, request in enumerate(requests):
        groups.setdefault(request.group, []).append(number)
    for members in groups.values():
        own = [requests[number] for number in members]
        # the last token before the scored ones predicts the first of them: it belongs to the rest
        stem = min(len(request.tokens) - request.scored - 1 for request in own)
        stem = min(stem, *(_shared(own[0].tokens, other.tokens) for other in own))
        if len(members) > 1 and stem > 0:
            yield _Item(own[0].tokens[:stem], members)
        else:
            yield from (_Item(requests[number].tokens[:-1], [number]) for number in members)


class _Scorer:
    def __init__(
        self,
        model: Decoder,
        requests: Sequence[Request],
        batch_size: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.model, self.requests, self.batch_size = model, requests, batch_size
        self.progress = progress
        self.found: dict[int, Likelihood] = {}

    def visit(self, items: list[_Item], state: DecoderState | None, read: int) -> None:
        """Score items, sorted by their tokens, all of which begin with `read` that `state` knows.

        Runs of items that share much more are visited first, from a state that knows it.
        """
        shared = [_shared(a.tokens, b.tokens) for a, b in pairwise(items)]
        common = min(shared, default=0)
        if common >= read + MIN_SHARED and len(items) >= MIN_SHARERS:
            # a text that is no longer than this would have nothing left to read
            common = min(common, min(len(item.tokens) for item in items) - 1)
            _, state = self._read([items[0].tokens[read:common]], state, [0])
            read = common
        rest: list[_Item] = []
        begin = 0
        for end in range(1, len(items) + 1):
            if end == len(items) or shared[end - 1] < read + MIN_SHARED:
                run = items[begin:end]
                if MIN_SHARERS <= len(run) < len(items):
                    self.visit(run, state, read)
                else:
                    rest += run
                begin = end
        self._score(rest, state, read)

    def _score(self, items: list[_Item], state: DecoderState | None, read: int) -> None:
        """Read items from one state, in batches of like length; then the rests of stems."""
        items = sorted(items, key=lambda item: len(item.tokens))
        for batch in self._batches(items, [len(item.tokens) - read for item in items]):
            ends = [self._scored(item) for item in batch]
            before = None if state is None else select_rows(state, [0] * len(batch))
            hidden, after = self._read([item.tokens[read:] for item in batch], before, ends)
            self._settle(batch, hidden)
            stems = [(row, item) for row, item in enumerate(batch) if len(item.members) > 1]
            forks = [
                (row, _Item(self.requests[number].tokens[len(item.tokens) : -1], [number]))
                for row, item in stems
                for number in item.members
            ]
            forks.sort(key=lambda fork: len(fork[1].tokens))
            for part in self._batches(forks, [len(item.tokens) for _, item in forks]):
                rests = [item for _, item in part]
                forked = select_rows(after, [row for row, _ in part])
                ends = [self._scored(item) for item in rests]
                hidden, _ = self._read([item.tokens for item in rests], forked, ends)
                self._settle(rests, hidden)

    def _scored(self, item: _Item) -> int:
        """Places at the item's end whose predictions are scored."""
        return self.requests[item.members[0]].scored if len(item.members) == 1 else 0

    def _batches(self, items: list, lengths: list[int]) -> Iterator[list]:
        """Cut a list whose lengths rise into batches that are not too large."""
        begin = 0
        for end in range(1, len(items) + 1):
            full = end - begin == self.batch_size
            if end == len(items) or full or (end - begin + 1) * lengths[end] > CALL_TOKENS:
                yield items[begin:end]
                begin = end

    def _read(
        self, rows: list[list[int]], state: DecoderState | None, ends: list[int]
    ) -> tuple[Float[Tensor, "places D"], DecoderState]:
        """Read rows of different lengths; return hidden vectors of each row's last `ends` places.

        Long rows are read in pieces, so that memory does not grow with them.
        """
        device = next(self.model.parameters()).device
        lengths = torch.tensor([len(row) for row in rows])
        longest = int(lengths.max())
        place = torch.arange(longest)[None]
        tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
        valid = place < lengths[:, None]
        tokens[valid] = torch.tensor([token for row in rows for token in row])
        wanted = valid & (place >= (lengths - torch.tensor(ends))[:, None])
        padded = not valid.all()
        tokens, valid, wanted = tokens.to(device), valid.to(device), wanted.to(device)
        size = max(CALL_TOKENS // len(rows), 1)
        found: list[list[Tensor]] = [[] for _ in rows]
        for begin in range(0, longest, size):
            piece = slice(begin, begin + size)
            mask = valid[:, piece] if padded else None
            hidden, state = self.model.hidden(tokens[:, piece], state, valid=mask)
            counts = wanted[:, piece].sum(1).tolist()
            for own, part in zip(found, hidden[wanted[:, piece]].split(counts), strict=True):
                own.append(part)
        assert state is not None
        return torch.cat([part for own in found for part in own]), state

    def _settle(self, items: list[_Item], hidden: Float[Tensor, "places D"]) -> None:
        """Note the likelihoods of items that are one request, from vectors in their order."""
        numbers = [item.members[0] for item in items if len(item.members) == 1]
        if not numbers:
            return
        own = [self.requests[number] for number in numbers]
        targets = torch.tensor(
            [token for request in own for token in request.tokens[-request.scored :]],
            device=hidden.device,
        )
        rows = max(1, LOGITS // self.model.config.vocab_size)
        nats, greedy = [], []
        for vectors, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = self.model.head(vectors).float()
            nats.append(F.cross_entropy(logits, wanted, reduction="none").double())
            greedy.append(logits.argmax(-1) == wanted)
        counts = [request.scored for request in own]
        parts = zip(torch.cat(nats).split(counts), torch.cat(greedy).split(counts), strict=True)
        for number, (losses, likeliest) in zip(numbers, parts, strict=True):
            self.found[number] = Likelihood(-losses.sum().item(), bool(likeliest.all()))
        if self.progress is not None:
            self.progress(len(self.found), len(self.requests))


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with in common."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count
