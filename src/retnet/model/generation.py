"""Generation of text: many prompts at once, one as a stream, or a session of turns."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.model.decoder import Decoder
from retnet.model.decoding import Decoding, prefill
from retnet.model.reply import FinishReason, Reply, Tokenizer
from retnet.model.sampling import PLAIN, Sampling, row_generator
from retnet.model.state import DecoderState, select_rows


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One generated text.

    Attributes:
        text: without the stop string.
        tokens: all that were generated, those of the stop string included, without BOS and EOS.
        finish_reason: see `FinishReason`.
        num_prompt_tokens: tokens read before the first was generated, BOS included.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int


def generate(  # noqa: PLR0913  (a config for the rest would only hide Sampling's neighbours)
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int = 128,
    sampling: Sampling = PLAIN,
    stop: str | Sequence[str] = (),
    num_samples: int = 1,
    state: DecoderState | None = None,
    on_text: Callable[[int, int, str], None] | None = None,
) -> list[list[Completion]]:
    """Complete every prompt, all in one batch, `num_samples` times each from one reading of it.

    Sample i of a prompt depends on the prompt, the settings and (seed, i) alone: more samples or
    other prompts change nothing but the last bits of the logits. A finished text leaves the batch.

    Args:
        model: used as it is; `model.eval()` turns its dropout off.
        tokenizer: the model's.
        prompts: may be empty texts where there is no state.
        max_tokens: tokens to generate at most for each text.
        sampling: how to choose tokens.
        stop: strings that end a text, which will not contain them.
        num_samples: texts for each prompt.
        state: what each prompt continues, a row for each; None starts texts, with BOS.
        on_text: called with prompt index, sample index and a piece as soon as it may be shown;
            the pieces of one text make up the whole.

    Returns:
        For each prompt its samples.

    Raises:
        ValueError: prompts is a string, a prompt has nothing to read, the state has another
            number of rows, or a setting is outside its range.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts ({prompts!r:.40}) is one string; pass a list of them")
    if num_samples < 1:
        raise ValueError(f"num_samples ({num_samples}) must be at least 1")
    if state is not None and len(state.position) != len(prompts):
        raise ValueError(
            f"the state has {len(state.position)} rows and there are {len(prompts)} prompts; "
            "they must be equal: select_rows repeats a row"
        )
    ids = [([tokenizer.bos_id] if state is None else []) + tokenizer.encode(p) for p in prompts]
    if not ids:
        return []
    if [] in ids:
        raise ValueError(
            f"prompt {ids.index([])} is empty and continues a state, which alone predicts nothing; "
            "give it some text"
        )
    owners = [(p, i) for p in range(len(prompts)) for i in range(num_samples)]
    replies = [Reply(tokenizer, max_tokens, stop) for _ in owners]
    tokens, valid = _right_padded(ids, _device(model))
    logits, state = prefill(model, tokens, state, valid=valid)
    if num_samples > 1:
        forks = [p for p, _ in owners]
        logits, state = logits[forks], select_rows(state, forks)
    generators = [row_generator(sampling.seed, i) for _, i in owners]
    decoding = Decoding(model, logits, state, sampling, generators)
    live = list(range(len(owners))) if max_tokens else []
    while live:
        for row, token in zip(live, next(decoding).tolist(), strict=True):
            piece = replies[row].take(token)
            if piece and on_text is not None:
                on_text(*owners[row], piece)
        going = [i for i, row in enumerate(live) if replies[row].finish_reason is None]
        if going and len(going) < len(live):
            decoding.keep(going)
        live = [live[i] for i in going]
    done = [_completion(reply, len(ids[p])) for reply, (p, _) in zip(replies, owners, strict=True)]
    return [done[at : at + num_samples] for at in range(0, len(done), num_samples)]


def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int = 128,
    sampling: Sampling = PLAIN,
    stop: str | Sequence[str] = (),
    state: DecoderState | None = None,
) -> Iterator[str]:
    """Yield the text of sample 0 of `generate` in pieces, each as soon as it may be shown.

    The prompt is read before this returns, and refused then if it must be.
    """
    session = Session(model, tokenizer, state)
    return session.send(prompt, max_tokens=max_tokens, sampling=sampling, stop=stop)


class Pause(NamedTuple):
    """Where a session stands, for another one to go on from as if it had never stopped.

    Attributes:
        state: after the tokens that the model has read.
        logits: (V,) that follow it.
        unread_tokens: of the text after those.
        unread_text: what follows these.
        num_replies: that came before.
    """

    state: DecoderState
    logits: Tensor
    unread_tokens: list[int]
    unread_text: str
    num_replies: int


class Session:
    """A text that you and the model write in turns; its size does not grow with the text.

    It always stands exactly after what was sent and what was yielded, however a reply ended: a
    stop string is not part of it (send it, if it belongs to the text), and a reply may be
    abandoned by not asking for more. The next `send` ends it.

    Attributes:
        state: after the tokens that the model has read, which lag the text by a token or a few
            characters until the next `send`; None before the first.
        finish_reason: of the last reply; None while it goes on.

    Example:
        >>> from retnet.data import Tokenizer
        >>> from retnet.model import preset
        >>> tokenizer = Tokenizer.bytes()
        >>> model = Decoder(preset("small-4m", vocab_size=tokenizer.vocab_size)).eval()
        >>> session = Session(model, tokenizer)
        >>> first = "".join(session.send("Once upon", max_tokens=5))
        >>> more = "".join(session.send(" a time", max_tokens=5))
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, state: DecoderState | None = None
    ) -> None:
        """Begin a text, or continue the one row of a state."""
        if state is not None and len(state.position) != 1:
            raise ValueError(
                f"the state has {len(state.position)} rows and a session has one; "
                "select_rows picks it"
            )
        self._state: Callable[[], DecoderState | None] = lambda: state
        self.finish_reason: FinishReason | None = None
        self._model = model
        self._tokenizer = tokenizer
        self._logits: Tensor | None = None  # that follow the state
        self._unread_tokens: list[int] = []
        self._unread_text = ""
        self._num_replies = 0
        self._turn: tuple[int, list[int], Reply | None] = (0, [], None)

    @classmethod
    def resume(cls, model: Decoder, tokenizer: Tokenizer, pause: Pause) -> "Session":
        """Go on from where a session of the same model stood."""
        session = cls(model, tokenizer, pause.state)
        session._logits = pause.logits[None].to(_device(model))
        session._unread_tokens = list(pause.unread_tokens)
        session._unread_text = pause.unread_text
        session._num_replies = pause.num_replies
        return session

    def pause(self) -> Pause | None:
        """Where it stands; None before the first `send`."""
        state = self.state
        if state is None or self._logits is None:
            return None
        unread = list(self._unread_tokens), self._unread_text
        return Pause(state, self._logits[0], *unread, self._num_replies)

    @property
    def read_tokens(self) -> list[int]:
        """Those that the state has read since the last `send` began."""
        start, ids, reply = self._turn
        state = self.state
        if reply is None or state is None:
            return []
        return (ids + reply.tokens)[: int(state.position) - start]

    @property
    def state(self) -> DecoderState | None:
        """See the class."""
        state = self._state()
        self._state = lambda: state  # made once
        return state

    def send(
        self,
        text: str,
        *,
        max_tokens: int = 128,
        sampling: Sampling = PLAIN,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """Read a text, then yield the reply in pieces, each as soon as it may be shown.

        Reading is done before this returns. Draws depend on the seed and on how many replies came
        before. An empty text lets the model go on where it is.

        Raises:
            ValueError: there is nothing to go on from, or a setting is outside its range.
        """
        reply = Reply(self._tokenizer, max_tokens, stop)
        state = self.state
        start = 0 if state is None else int(state.position)
        ids = [] if state is not None else [self._tokenizer.bos_id]
        ids += self._unread_tokens + self._tokenizer.encode(self._unread_text + text)
        if ids:
            tokens = torch.tensor([ids], device=_device(self._model))
            self._logits, state = prefill(self._model, tokens, state)
            self._state = lambda: state
            self._unread_tokens, self._unread_text = [], ""
        if self._logits is None or state is None:
            raise ValueError(
                f"text ({text!r}) is empty and the state alone predicts nothing; send some text"
            )
        self._turn = (start, ids, reply)
        generator = row_generator(sampling.seed, self._num_replies)
        self._num_replies += 1
        self.finish_reason = reply.finish_reason
        decoding = Decoding(self._model, self._logits, state, sampling, [generator])
        return self._write(decoding, reply, self._num_replies)

    def _write(self, decoding: Decoding, reply: Reply, turn: int) -> Iterator[str]:
        # The first mark is the last whole character before which everything has been shown; the
        # others stand in withheld text, so there are never more than a stop string is long.
        marks = deque([_Mark(0, decoding.logits, decoding.mark())])
        shown = ""  # since the first mark
        while reply.finish_reason is None and turn == self._num_replies:
            token = int(next(decoding))
            here = _Mark(reply.num_decoded, decoding.logits, decoding.mark())
            if reply.at_boundary:
                marks.append(here)
            piece = reply.take(token)
            shown += piece
            while len(marks) > 1 and marks[1].num_decoded <= reply.num_shown:
                past = marks.popleft()
                shown = shown[marks[0].num_decoded - past.num_decoded :]
            # before the yield, so that the session is right whenever the caller stops
            if reply.at_boundary and reply.num_shown == reply.num_decoded:
                self._unread_tokens = [] if token in self._tokenizer.end_ids else [token]
                self._unread_text = ""
            else:
                here, self._unread_tokens, self._unread_text = marks[0], [], shown
            self._logits, self._state = here.logits, here.state
            self.finish_reason = reply.finish_reason
            if piece:
                yield piece

    def fork(self) -> "Session":
        """Make a second session that goes on from here on its own; it costs nothing.

        With the same seed and texts both write the same.
        """
        return copy(self)  # all that a session holds are values, replaced and never modified


class _Mark(NamedTuple):
    num_decoded: int  # characters of the reply that are in the state
    logits: Tensor
    state: Callable[[], DecoderState]


def _right_padded(ids: list[list[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens (B, T) and which of them are valid; padding is token 0."""
    tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    valid = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, known in enumerate(ids):
        tokens[row, : len(known)] = torch.tensor(known, dtype=torch.int64)
        valid[row, : len(known)] = True
    return tokens.to(device), valid.to(device)


def _device(model: Decoder) -> torch.device:
    return next(model.parameters()).device


def _completion(reply: Reply, num_prompt_tokens: int) -> Completion:
    assert reply.finish_reason is not None
    return Completion(
        text=reply.text,
        tokens=tuple(reply.tokens),
        finish_reason=reply.finish_reason,
        num_prompt_tokens=num_prompt_tokens,
    )
