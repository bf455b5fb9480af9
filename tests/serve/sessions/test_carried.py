import pytest

from retnet.serve.sessions import (
    Identity,
    SessionError,
    SessionRefused,
    SessionStore,
    check_name,
    give,
    identify,
    take,
)
from session_support import equal_states, made_state, made_turn, small_model


def test_a_carried_state_comes_back_to_the_bit_and_does_not_grow(identity: Identity) -> None:
    files = [give(made_state(identity, n), {"tail": "x"}, identity) for n in (1, 2_000_000)]
    found = take(files[0], identity)
    assert equal_states(found.snapshot.state, made_state(identity, 1))
    assert (found.tokens, found.meta) == (None, {"tail": "x"})
    assert len(files[0]) == len(files[1])


def test_an_exported_session_can_be_carried_but_a_carried_state_is_no_session(
    store: SessionStore, identity: Identity
) -> None:
    store.commit("a", "", made_turn(identity, 0), None)
    assert take(store.export("a", ""), identity).meta == {"number": 0}
    with pytest.raises(SessionRefused, match="no list of tokens"):
        store.import_(give(made_state(identity, 0), {}, identity), "b", "")


def test_a_carried_state_that_is_altered_cut_or_anothers_is_refused(identity: Identity) -> None:
    file = give(made_state(identity, 0), {}, identity)
    altered = bytearray(file)
    altered[-1] ^= 1
    for data in (bytes(altered), file[:-3], b""):
        with pytest.raises(SessionRefused, match="the state"):
            take(data, identity)
    with pytest.raises(SessionRefused, match="other weights"):
        take(file, identify(small_model(1)))
    for number in (-1, 2**60):  # no tokens, and more than can be counted
        with pytest.raises(SessionRefused, match="tokens"):
            take(give(made_state(identity, number), {}, identity), identity)


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "a\n", "x" * 201, "\ud800"])
def test_names_that_no_session_can_have(name: str) -> None:
    with pytest.raises(SessionError, match="choose another"):
        check_name(name)
