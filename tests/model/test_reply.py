import pytest
from hypothesis import given
from hypothesis import strategies as st

from retnet.model.reply import Reply


class Pieces:
    """A tokenizer whose token i is the i-th piece; BOS is one more, and EOS another."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    @property
    def bos_id(self) -> int:
        return len(self.pieces)

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.bos_id, self.bos_id + 1

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError(text)

    def id_bytes(self, token: int) -> bytes:
        return self.pieces[token]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    places = sorted(min(place, len(data)) for place in places)
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]


def before_stop(text: str, stop: list[str]) -> str:
    """The definition: read character by character until some stop string is complete."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


def begins_stop(text: str, stop: list[str]) -> int:
    """Length of the longest suffix that begins a stop string."""
    return max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


TEXTS = st.text("ab€😀", max_size=12)
STOPS = st.lists(st.text("ab€", min_size=1, max_size=4), max_size=3)
PLACES = st.lists(st.integers(0, 30), max_size=12)


@given(text=TEXTS, stop=STOPS, places=PLACES, ends_with_bos=st.booleans())
def test_reply_is_the_text_before_the_first_stop_however_it_is_cut_into_tokens(
    text, stop, places, ends_with_bos
):
    pieces = cut(text.encode(), places)
    reply = Reply(Pieces(pieces), len(pieces) + ends_with_bos, stop)
    shown = ""
    for token in range(len(pieces) + ends_with_bos):
        shown += reply.take(token)
        assert reply.text == shown
        assert reply.num_shown == len(shown)
        if reply.finish_reason is not None:
            break
        # all whole characters are shown, but for what a stop string may begin with
        whole = b"".join(pieces[: token + 1]).decode(errors="ignore")
        assert shown == whole[: len(whole) - begins_stop(whole, stop)]
        assert reply.num_decoded == len(whole)
    want = before_stop(text, stop)
    assert shown == want
    assert reply.finish_reason == ("stop" if ends_with_bos or want != text else "length")


@given(data=st.binary(max_size=12) | TEXTS.map(str.encode), places=PLACES)
def test_reply_shows_bytes_that_are_not_utf8_as_the_replacement_character(data, places):
    pieces = cut(data, places)
    reply = Reply(Pieces(pieces), len(pieces), ())
    assert "".join(map(reply.take, range(len(pieces)))) == data.decode(errors="replace")


def test_reply_shows_a_bad_byte_as_soon_as_it_is_known_to_be_bad():
    euro = "€".encode()
    reply = Reply(Pieces([euro[:1], b"x", euro[:2], euro[2:], euro[:1]]), 5, ())
    assert [reply.take(token) for token in range(5)] == ["", "\ufffdx", "", "€", "\ufffd"]


def test_reply_knows_whether_it_stands_between_characters():
    euro = "€".encode()
    reply = Reply(Pieces([b"a", euro[:2], euro[2:]]), 9, ())
    assert reply.at_boundary
    assert [(reply.take(token), reply.at_boundary) for token in range(3)] == [
        ("a", True),
        ("", False),
        ("€", True),
    ]


def test_reply_shows_a_withheld_beginning_when_the_text_ends_without_the_rest():
    for ending in (2, 3):  # by length, and by BOS
        reply = Reply(Pieces([b"Hi\nUs", b"er"]), ending, "\nUser:")
        assert reply.take(0) == "Hi"
        assert reply.take(1) == ("\nUser" if ending == 2 else "")
        if ending == 3:
            assert reply.take(2) == "\nUser"
        assert reply.finish_reason == ("length" if ending == 2 else "stop")


def test_reply_ends_before_the_stop_string_that_is_complete_first():
    for stop, want in ((["bcd", "c"], "ab"), (["d", "bcd"], "a"), (["bcd", "cx"], "a")):
        for pieces in ([b"abcd"], [b"a", b"b", b"c", b"d"]):
            reply = Reply(Pieces(pieces), 9, stop)
            for token in range(len(pieces)):
                if reply.finish_reason is None:
                    reply.take(token)
            assert reply.text == want


def test_reply_counts_all_tokens_but_the_one_that_ends_it():
    reply = Reply(Pieces([b"ab", b"cd"]), 9, "bc")
    for token in range(2):
        reply.take(token)
    assert (reply.text, reply.tokens, reply.finish_reason) == ("a", [0, 1], "stop")
    for end in (1, 2):  # BOS, EOS
        reply = Reply(Pieces([b"ab"]), 9, ())
        reply.take(0)
        reply.take(end)
        assert (reply.text, reply.tokens, reply.finish_reason) == ("ab", [0], "stop")


def test_reply_of_no_tokens_has_ended():
    assert Reply(Pieces([]), 0, ()).finish_reason == "length"


@pytest.mark.parametrize(
    ("max_tokens", "stop", "message"),
    [
        (-1, (), r"max_tokens \(-1\) must be 0 or more; 0 only reads the prompt"),
        (1, ["a", ""], r"stop \('a', ''\) has an empty string, which ends every text"),
        (1, "", r"stop \('',\) has an empty string"),
    ],
)
def test_reply_refuses_settings_that_mean_nothing(max_tokens, stop, message):
    with pytest.raises(ValueError, match=message):
        Reply(Pieces([]), max_tokens, stop)
