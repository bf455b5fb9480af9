from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor, nn

from retnet.model.decoder import Decoder
from retnet.model.decoding import prefill
from retnet.model.generation import Completion, Session, generate, stream
from retnet.model.sampling import Sampling
from retnet.model.state import DecoderState, select_rows

BOS = 256
GREEDY = Sampling(temperature=0.0)


class Pieces:
    """A tokenizer of bytes and a few longer pieces, which only the model uses."""

    bos_id = BOS
    end_ids = (BOS,)

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = [bytes([byte]) for byte in range(256)] + [b""] + list(pieces)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def id_bytes(self, token: int) -> bytes:
        return self.pieces[token]


class Letters(Pieces):
    """Every token shows as one printable character, so a random model writes readable text."""

    def id_bytes(self, token: int) -> bytes:
        return bytes([32 + token % 95]) if token != BOS else b""


class Scripted(Decoder):
    """Continues a prompt of `after` bytes with fixed pieces, then BOS.

    Its state is the number of bytes read, so it shows exactly where a session stands.
    """

    def __init__(self, after: int, *script: bytes) -> None:
        nn.Module.__init__(self)
        self.tokenizer = Pieces(*script)
        self.weight = nn.Parameter(torch.zeros(1))  # it tells the device
        self.layers = nn.ModuleList()
        self.num_bytes = torch.tensor([len(piece) for piece in self.tokenizer.pieces])
        self.next_token = {}
        self.tokens_read: list[int] = []
        for token, piece in enumerate(script, start=BOS + 1):
            self.next_token[after] = token
            after += len(piece)

    def hidden(self, tokens: Tensor, state: Any = None, *, valid: Any = None, **_: Any) -> Any:  # type: ignore[override]
        self.tokens_read += tokens.flatten().tolist()
        steps = self.num_bytes[tokens] * (1 if valid is None else valid)
        read = steps.cumsum(1) + (0 if state is None else state.position[:, None])
        return read[..., None].double(), DecoderState(read[:, -1], ())

    def head(self, h: Tensor) -> Tensor:
        logits = torch.zeros(*h.shape[:-1], len(self.tokenizer.pieces))
        of_rows = logits.view(-1, logits.shape[-1])
        for row, read in enumerate(h[..., 0].flatten().tolist()):
            of_rows[row, self.next_token.get(int(read), BOS)] = 99.0
        return logits


def texts(completions: list[list[Completion]]) -> list[list[str]]:
    return [[one.text for one in samples] for samples in completions]


@pytest.fixture
def tokens_read(tiny_model: Decoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that each call gives to the model."""
    calls: list[int] = []
    hidden = tiny_model.hidden

    def counted(tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append(tokens.numel())
        return hidden(tokens, *args, **kwargs)

    monkeypatch.setattr(tiny_model, "hidden", counted)
    return calls


def test_generate_greedily_is_the_argmax_of_full_forward_passes(tiny_model):
    [[got]] = generate(tiny_model, Pieces(), ["Once"], max_tokens=10, sampling=GREEDY)
    ids = [BOS, *b"Once"]
    for _ in range(10):
        ids.append(int(tiny_model(torch.tensor([ids]))[0][0, -1].argmax()))
    assert list(got.tokens) == ids[5:]
    assert (got.finish_reason, got.num_prompt_tokens) == ("length", 5)
    assert got.text == bytes(got.tokens).decode(errors="replace")


def test_generate_with_the_projects_own_tokenizer(tiny_model):
    from retnet.data import Tokenizer

    ours = generate(tiny_model, Tokenizer.bytes(), ["é"], sampling=Sampling(seed=0))
    assert ours == generate(tiny_model, Pieces(), ["é"], sampling=Sampling(seed=0))


def test_generate_a_sample_is_the_same_beside_any_others(tiny_model):
    prompts = ["", "a", "a longer prompt, so that the batch is padded"]
    settings = {"max_tokens": 20, "sampling": Sampling(seed=5, top_p=0.9, repetition_penalty=1.1)}
    together = generate(tiny_model, Pieces(), prompts, num_samples=3, **settings)
    for prompt, samples in zip(prompts, together, strict=True):
        [alone] = generate(tiny_model, Pieces(), [prompt], **settings)
        [pair] = generate(tiny_model, Pieces(), [prompt], num_samples=2, **settings)
        assert alone == samples[:1]
        assert pair == samples[:2]
        assert "".join(stream(tiny_model, Pieces(), prompt, **settings)) == samples[0].text
        assert len({one.tokens for one in samples}) == 3


def test_generate_repeats_itself_only_if_there_is_a_seed(tiny_model):
    def tokens(seed: int | None) -> tuple[int, ...]:
        settings = Sampling(seed=seed)
        return generate(tiny_model, Pieces(), ["a"], max_tokens=30, sampling=settings)[0][0].tokens

    assert tokens(1) == tokens(1)
    assert len({tokens(1), tokens(2), tokens(None), tokens(None)}) == 4
    both = generate(tiny_model, Pieces(), ["a", "a"], max_tokens=30)
    assert both[0] != both[1], "without a seed equal prompts do not share their draws"


def test_generate_reads_a_prompt_once_for_all_its_samples(tiny_model, tokens_read):
    generate(tiny_model, Pieces(), ["12345"], max_tokens=4, num_samples=3, sampling=GREEDY)
    assert tokens_read == [6, 3, 3, 3]


def test_generate_stops_paying_for_a_text_that_has_ended(tiny_model, tokens_read):
    full = generate(tiny_model, Letters(), ["a", "b"], max_tokens=12, sampling=GREEDY)
    first = full[0][0].text
    ends = next(n for n in range(2, 12) if first[:n] not in full[1][0].text)
    del tokens_read[:]
    [[short], [long]] = generate(
        tiny_model, Letters(), ["a", "b"], max_tokens=12, sampling=GREEDY, stop=first[:ends]
    )
    assert (short.text, short.finish_reason) == ("", "stop")
    assert long == full[1][0]
    steps = len(short.tokens)
    assert tokens_read == [4] + [2] * (steps - 1) + [1] * (12 - steps)


def test_generate_ends_at_bos_which_is_not_part_of_the_text():
    model = Scripted(1, b"ab", b"c")
    [[got]] = generate(model, model.tokenizer, ["x"], sampling=GREEDY)
    assert got == Completion(
        text="abc", tokens=(257, 258), finish_reason="stop", num_prompt_tokens=2
    )


def test_generate_continues_states_without_bos(tiny_model):
    whole = generate(tiny_model, Pieces(), ["onetwo", "uno"], max_tokens=5, sampling=GREEDY)
    _, state = prefill(tiny_model, torch.tensor([[BOS, *b"one"]]))
    _, other = prefill(tiny_model, torch.tensor([[BOS, *b"u"]]))
    rest = [
        generate(tiny_model, Pieces(), [text], max_tokens=5, sampling=GREEDY, state=before)[0][0]
        for text, before in (("two", state), ("no", other))
    ]
    assert [one.tokens for one in rest] == [samples[0].tokens for samples in whole]
    assert [one.num_prompt_tokens for one in rest] == [3, 2]
    forked = generate(
        tiny_model,
        Pieces(),
        ["two", "2"],
        max_tokens=5,
        sampling=GREEDY,
        state=select_rows(state, [0, 0]),
    )
    assert forked[0] == [rest[0]]


def test_generate_calls_on_text_with_pieces_that_make_up_the_text():
    euro, smile = "€".encode(), "😀".encode()
    model = Scripted(1, b"a", euro[:1], euro[1:] + smile[:3], smile[3:], b"b", b"!E", b"ND")
    shown: dict[tuple[int, int], list[str]] = {(p, i): [] for p in range(2) for i in range(2)}
    got = generate(
        model,
        model.tokenizer,
        ["x", "y"],
        sampling=GREEDY,
        stop=["!END", "!?"],
        num_samples=2,
        on_text=lambda prompt, sample, piece: shown[prompt, sample].append(piece),
    )
    assert texts(got) == [["a€😀b"] * 2] * 2
    assert all(pieces == ["a", "€", "😀", "b"] for pieces in shown.values())


def test_generate_of_no_prompts_or_no_tokens(tiny_model):
    assert generate(tiny_model, Pieces(), []) == []
    [[got]] = generate(tiny_model, Pieces(), ["abc"], max_tokens=0)
    assert got == Completion(text="", tokens=(), finish_reason="length", num_prompt_tokens=4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompts": "text"}, r"prompts \('text'\) is one string; pass a list of them"),
        ({"num_samples": 0}, r"num_samples \(0\) must be at least 1"),
        ({"max_tokens": -1}, r"max_tokens \(-1\) must be 0 or more"),
        ({"prompts": ["a", ""]}, r"prompt 1 is empty and continues a state.*give it some text"),
        ({"prompts": ["a"]}, r"the state has 2 rows and there are 1 prompts; they must be equal"),
    ],
)
def test_generate_refuses_what_it_cannot_do(tiny_model, settings, message):
    _, state = prefill(tiny_model, torch.tensor([[1], [2]]))
    given = {"prompts": ["a", "b"], "state": state} | settings
    with pytest.raises(ValueError, match=message):
        generate(tiny_model, Pieces(), **given)


def test_stream_reads_the_prompt_before_it_returns(tiny_model, tokens_read):
    pieces = stream(tiny_model, Pieces(), "abc", max_tokens=3, sampling=GREEDY)
    assert tokens_read == [4]
    next(pieces)
    assert not torch.is_inference_mode_enabled()
    with pytest.raises(ValueError, match="max_tokens"):
        stream(tiny_model, Pieces(), "abc", max_tokens=-1)


def test_session_in_turns_writes_what_one_long_reply_would(tiny_model):
    want = "".join(stream(tiny_model, Letters(), "ab", max_tokens=9, sampling=GREEDY))
    session = Session(tiny_model, Letters())
    got = "".join(session.send("ab", max_tokens=0))
    for size in (1, 5, 3):
        got += "".join(session.send("", max_tokens=size, sampling=GREEDY))
        assert session.finish_reason == "length"
    assert got == want
    assert session.state is not None
    assert session.state.position.tolist() == [3 + 8], "the last token is not read yet"


def test_session_reads_the_last_token_with_the_next_text(tiny_model):
    [[reply]] = generate(tiny_model, Letters(), ["ab"], max_tokens=3, sampling=GREEDY)
    session = Session(tiny_model, Letters())
    assert "".join(session.send("ab", max_tokens=3, sampling=GREEDY)) == reply.text
    list(session.send("cd", max_tokens=0))
    _, want = prefill(tiny_model, torch.tensor([[BOS, *b"ab", *reply.tokens, *b"cd"]]))
    assert session.state is not None
    assert torch.equal(session.state.position, want.position)
    for got, expected in zip(session.state.layers, want.layers, strict=True):
        torch.testing.assert_close(got[0].S, expected[0].S, rtol=1e-9, atol=1e-9)


@example(text="€b", places=[1], stop=["€b"], max_tokens=9, taken=9)
@given(
    text=st.text("ab€", min_size=1, max_size=10),
    places=st.lists(st.integers(0, 30), max_size=8),
    stop=st.lists(st.text("ab€", min_size=1, max_size=4), max_size=2),
    max_tokens=st.integers(1, 12),
    taken=st.integers(0, 12),
)
def test_session_stands_after_what_was_sent_and_shown_however_the_reply_ends(
    text, places, stop, max_tokens, taken
):
    data = text.encode()
    places = sorted({min(place, len(data)) for place in places} | {0, len(data)})
    script = [data[a:b] for a, b in pairwise(places)]
    model = Scripted(2, *script)
    session = Session(model, model.tokenizer)
    reply = session.send("hi", max_tokens=max_tokens, sampling=GREEDY, stop=stop)
    shown = "".join(islice(reply, taken))
    if "\ufffd" in shown:  # cut within a character by max_tokens: the bytes count, not the text
        return
    twin = session.fork()
    for one in (session, twin):
        list(one.send("", max_tokens=0) if shown else one.send("!", max_tokens=0))
        assert one.state is not None
        assert int(one.state.position[0]) == len(b"hi") + len((shown or "!").encode())
    assert list(reply) == [], "the next send has ended this reply"


def test_session_goes_on_after_a_stop_string_that_ended_within_a_token():
    model = Scripted(2, b"yes.\nU", b"ser: more")
    session = Session(model, model.tokenizer)
    assert "".join(session.send("hi", sampling=GREEDY, stop="\nUser:")) == "yes."
    assert session.finish_reason == "stop"
    sent = "\nUser: more"
    list(session.send(sent, max_tokens=0))
    assert session.state is not None
    assert int(session.state.position[0]) == len("hiyes." + sent)


def test_session_that_reached_the_end_of_the_document_reads_on_without_bos():
    model = Scripted(2, b"bye")
    session = Session(model, model.tokenizer)
    assert "".join(session.send("hi", sampling=GREEDY)) == "bye"
    assert session.finish_reason == "stop"
    list(session.send("x", max_tokens=0))
    assert model.tokens_read == [BOS, *b"hi", BOS + 1, *b"x"]


def test_session_forks_write_apart(tiny_model):
    session = Session(tiny_model, Pieces())
    list(session.send("ab", max_tokens=0))
    forks = [session.fork() for _ in range(3)]
    seeds = (1, 1, 2)
    replies = [
        "".join(fork.send("", max_tokens=20, sampling=Sampling(seed=seed)))
        for fork, seed in zip(forks, seeds, strict=True)
    ]
    assert replies[0] == replies[1] != replies[2]
    assert session.state is not None
    assert session.state.position.tolist() == [3]


def test_session_replies_of_one_seed_differ(tiny_model):
    settings = {"max_tokens": 20, "sampling": Sampling(seed=1)}
    session = Session(tiny_model, Letters())
    first = "".join(session.send("ab", **settings))
    later = Session(tiny_model, Letters())
    list(later.send("a", max_tokens=0))
    assert "".join(later.send("b", **settings)) != first


def test_session_refuses_a_state_it_cannot_continue(tiny_model):
    _, state = prefill(tiny_model, torch.tensor([[1], [2]]))
    with pytest.raises(ValueError, match="the state has 2 rows and a session has one"):
        Session(tiny_model, Pieces(), state)
    session = Session(tiny_model, Letters(), select_rows(state, [0]))
    with pytest.raises(ValueError, match=r"text \(''\) is empty and the state alone predicts"):
        session.send("")
    assert len("".join(session.send("a", max_tokens=3))) > 0
