import builtins
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from retnet.cli.chat import GREETING
from retnet.cli.status import OK
from retnet.hub import load, save_checkpoint
from retnet.model.decoding import prefill
from retnet.model.generation import Session
from retnet.model.sampling import Sampling
from retnet.serve.sessions import SessionStore, Turn, identify

Run = Callable[..., tuple[int, str, str]]
Type = Callable[..., None]

SAMPLING = Sampling(temperature=0.8, top_p=0.95, seed=7)


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Type:
    """Say what the user types: lines, exceptions that keys raise, and Ctrl-D at the end."""

    def plan(*lines: str | type[BaseException]) -> None:
        coming: Iterator[str | type[BaseException]] = iter(lines)

        def answer(_: str = "") -> str:
            line = next(coming, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr(builtins, "input", answer)

    return plan


@pytest.fixture
def chat(run: Run, checkpoint: Path) -> Callable[[], str]:
    """Chat as planned; what the model and the program say after the greeting."""

    def call() -> str:
        status, out, _ = run("chat", checkpoint, "--max-tokens", 12, "--seed", 7)
        assert status == OK
        assert out.startswith(GREETING + "\n")
        return out.removeprefix(GREETING + "\n")

    return call


def session(checkpoint: Path, *turns: str) -> str:
    text = Session(*load(checkpoint))
    return "".join(
        "".join(text.send(turn, max_tokens=12, sampling=SAMPLING)) + "\n" for turn in turns
    )


def test_turns_are_those_of_one_session(
    chat: Callable[[], str], typing: Type, checkpoint: Path
) -> None:
    typing("Once", " upon", "", "/quit")
    assert chat() == session(checkpoint, "Once", " upon", "")


def test_a_backslash_at_the_end_is_a_line_break(
    chat: Callable[[], str], typing: Type, checkpoint: Path
) -> None:
    typing("one\\", "two", "/quit")
    assert chat() == session(checkpoint, "one\ntwo")


def test_reset_begins_a_new_text(chat: Callable[[], str], typing: Type, checkpoint: Path) -> None:
    typing("Once", "/reset", "Once", "/quit")
    first, *others, again = chat().partition("a new text begins\n")
    assert others == ["a new text begins\n"]
    assert first == again == session(checkpoint, "Once")


def test_ctrl_d_leaves(chat: Callable[[], str], typing: Type) -> None:
    typing()
    assert chat() == "\n"


def test_ctrl_c_at_the_prompt_does_not_leave(
    chat: Callable[[], str], typing: Type, checkpoint: Path
) -> None:
    typing("lost\\", KeyboardInterrupt, "kept", "/quit")
    assert chat() == session(checkpoint, "kept")


def test_ctrl_c_stops_the_reply_and_the_text_goes_on(
    chat: Callable[[], str], typing: Type, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def show(piece: str) -> None:
        shown.append(piece)
        if len(shown) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("retnet.cli.chat.show_piece", show)
    typing("Once", " more", "/quit")
    assert chat() == " [stopped]\n\n"
    text = Session(*load(checkpoint))
    first = list(islice(text.send("Once", max_tokens=12, sampling=SAMPLING), 3))
    assert shown == first + list(text.send(" more", max_tokens=12, sampling=SAMPLING))


def test_a_text_that_ends_is_said_to_end(
    chat: Callable[[], str], typing: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "send", lambda *_, **__: iter(()))
    typing("The end.", "/quit")
    assert chat() == "[here the model ends the text]\n"


def test_stats_tell_the_length_and_a_state_that_does_not_grow(
    chat: Callable[[], str], typing: Type
) -> None:
    typing("/stats", "a", "/stats", "bc", "/stats", "/quit")
    out = chat()
    assert out.startswith("nothing was written yet\n")
    # BOS, the prompt, and 11 of the 12 tokens: the last is read when the text goes on
    assert "text so far: 13 tokens\nlast turn: 12 tokens, " in out
    assert "text so far: 27 tokens\nlast turn: 12 tokens, " in out
    assert (
        len({line.partition(", state ")[2] for line in out.splitlines() if ", state " in line}) == 1
    )


def test_an_unknown_command_is_not_sent_to_the_model(chat: Callable[[], str], typing: Type) -> None:
    typing("/save", "/help", "/quit")
    out = chat()
    assert out.startswith('"/save" is no command; the commands are /help, /reset, /stats and /quit')
    assert "/reset  begin a new text" in out


def test_text_that_is_not_unicode_is_refused_and_the_chat_goes_on(
    run: Run, typing: Type, checkpoint: Path
) -> None:
    typing("\udcff", "/stats", "fine", "/quit")
    status, out, err = run("chat", checkpoint, "--max-tokens", 12, "--seed", 7)
    assert status == OK
    assert err.startswith("error: ")
    assert out.endswith(session(checkpoint, "fine"))


@pytest.fixture
def named(run: Run, checkpoint: Path, tmp_path: Path) -> Callable[..., tuple[str, str]]:
    """Chat in a session as planned; what is said after the greeting, and what went wrong."""

    def call(*words: object, max_tokens: int = 12) -> tuple[str, str]:
        folder = ("--session", "novel", "--data-dir", tmp_path / "data")
        status, out, err = run(
            "chat", checkpoint, "--max-tokens", max_tokens, "--seed", 7, *folder, *words
        )
        assert status == OK, err
        return out.removeprefix(GREETING + "\n"), err

    return call


def test_a_text_with_a_name_goes_on_as_if_the_chat_had_never_ended(
    named: Callable[..., tuple[str, str]], typing: Type, checkpoint: Path
) -> None:
    typing("Once", " upon", "/quit")
    first, _ = named()
    typing("", "/quit")
    second, _ = named()
    typing(" a", "", "/stats", "/quit")
    third, _ = named()
    assert first.startswith('session "novel": 0 tokens so far\n')
    said = [out.partition("\n")[2] for out in (first, second, third)]
    third_turns, _, stats = said[2].partition("text so far")
    assert said[0] + said[1] + third_turns == session(checkpoint, "Once", " upon", "", " a", "")
    assert stats


def test_the_tokens_of_a_text_with_a_name_are_those_that_its_state_has_read(
    named: Callable[..., tuple[str, str]], typing: Type, checkpoint: Path, tmp_path: Path
) -> None:
    typing("Once", " upon", "", "\udcff", "/quit")
    named("--stop", "e")
    store = SessionStore(tmp_path / "data", identify(load(checkpoint)[0]))
    stored = store.get("novel", "")
    assert len(store.turns("novel", "")) == 3
    assert stored.num_tokens == int(stored.state.position)
    tokens = torch.tensor([stored.tokens])
    _, state = load(checkpoint)[0](tokens)
    assert torch.allclose(state.layers[0][0].S, stored.state.layers[0][0].S, atol=1e-6)
    store.close()


def test_what_another_program_wrote_meanwhile_is_not_overwritten(
    named: Callable[..., tuple[str, str]],
    typing: Type,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typing("Once", "/quit")
    named()
    store = SessionStore(tmp_path / "data", identify(load(checkpoint)[0]))

    def show(_: str) -> None:
        stored = store.get("novel", "")
        if len(store.turns("novel", "")) == 1:
            turn = Turn(state=stored.state, tokens=[5], meta=stored.meta, logits=stored.logits)
            store.commit("novel", "", turn, stored.version)

    monkeypatch.setattr("retnet.cli.chat.show_piece", show)
    typing(" lost", " kept", "/quit")
    out, err = named()
    assert err.startswith('error: this turn is not kept: session "novel" is at version 2')
    assert out.count('session "novel": ') == 2
    assert [turn.num_tokens for turn in store.turns("novel", "")][1] > 5
    assert len(store.turns("novel", "")) == 3
    store.close()


def test_reset_deletes_a_text_with_a_name(
    named: Callable[..., tuple[str, str]], typing: Type, checkpoint: Path
) -> None:
    typing("Once", "/reset", "/reset", " more", "/quit")
    named()
    typing("", "/quit")
    out, _ = named()
    first = session(checkpoint, " more")
    assert out.partition("\n")[2] == session(checkpoint, " more", "").removeprefix(first)


def test_a_text_that_a_server_keeps_goes_on_with_what_is_typed(
    named: Callable[..., tuple[str, str]], typing: Type, checkpoint: Path, tmp_path: Path
) -> None:
    model, tokenizer = load(checkpoint)
    ids = [tokenizer.bos_id, *tokenizer.encode("Once")]
    _, state = prefill(model, torch.tensor([ids]))
    store = SessionStore(tmp_path / "data", identify(model))
    store.commit("novel", "", Turn(state=state, tokens=ids, meta={}), None)
    typing("", " upon", "/quit")
    out, err = named()
    assert "is empty and the state alone predicts nothing" in err
    assert out.startswith('session "novel": 5 tokens so far\n')
    want = Session(model, tokenizer, state).send(" upon", max_tokens=12, sampling=SAMPLING)
    assert out.endswith("".join(want) + "\n")
    assert len(store.turns("novel", "")) == 2
    store.close()


def test_another_model_does_not_go_on_with_a_text(
    named: Callable[..., tuple[str, str]],
    run: Run,
    typing: Type,
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    typing("Once", "/quit")
    named()
    model, tokenizer = load(checkpoint)
    torch.nn.init.ones_(model.embed_tokens.weight)
    save_checkpoint(checkpoint, model, tokenizer)
    status, _, err = run("chat", checkpoint, "--session", "novel", "--data-dir", tmp_path / "data")
    assert status != OK
    assert "belongs to a model of other weights" in err
