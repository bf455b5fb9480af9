import sys

import pytest

from retnet.cli.screen import show_piece, show_prompt, token_bar

NASTY = "a\x1b[31mb\x07\tc\n"


def test_a_pipe_gets_the_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_prompt("not part of the text")
    show_piece(NASTY)
    assert capsys.readouterr().out == NASTY


def test_a_terminal_gets_no_control_characters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model may write any, and a terminal obeys them."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_piece(NASTY)
    assert capsys.readouterr().out == "a\ufffd[31mb\ufffd\tc\n"


def test_no_bar_is_drawn_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with token_bar("scoring") as show:
        show(0, 10)
        show(10, 10)
    assert capsys.readouterr() == ("", "")
