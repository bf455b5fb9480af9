"""The command `retnet` itself: finding commands, and what failures look like."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import forks
from retnet import cli
from retnet.cli import COMMANDS
from retnet.cli.status import FAILED, INTERRUPTED, OK

Run = Callable[..., tuple[int, str, str]]

SCREEN = 40


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command_with_an_example(run: Run, words: tuple[str, ...]) -> None:
    status, out, err = run(*words)
    assert (status, err) == (OK, "")
    for name, command in COMMANDS.items():
        assert f"  {name} " in out
        assert command.summary in out
        assert command.example in out


def test_help_fits_a_screen(run: Run) -> None:
    _, out, _ = run("--help")
    assert len(out.splitlines()) <= SCREEN
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_fits_a_screen_and_shows_an_example(run: Run, name: str) -> None:
    status, out, _ = run(name, "--help")
    assert status == OK
    assert len(out.splitlines()) <= SCREEN
    assert f"retnet {name}" in out.partition("xample")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_needs_no_torch(name: str) -> None:
    code = (
        "import contextlib, sys\n"
        "from retnet.cli import main\n"
        f"with contextlib.suppress(SystemExit): main([{name!r}, '--help'])\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_help_are_of_their_command(name: str) -> None:
    assert COMMANDS[name].example.startswith(f"retnet {name}")


def test_unknown_command_names_the_nearest(run: Run) -> None:
    assert run("trian") == (
        FAILED,
        "",
        'error: "trian" is not a command; did you mean "retnet train"?\n',
    )


def test_unknown_command_far_from_all_names_all(run: Run) -> None:
    status, _, err = run("xyzzy")
    assert status == FAILED
    assert f"choose one of {', '.join(COMMANDS)}" in err


def test_refused_values_are_one_line_without_a_traceback(run: Run, tmp_path: Path) -> None:
    status, out, err = run("generate", tmp_path)
    assert (status, out) == (FAILED, "")
    assert err.startswith("error: ")
    assert "has no config.json" in err
    assert err.count("\n") == 1


def test_unknown_option_names_the_nearest(run: Run, checkpoint: Path) -> None:
    status, _, err = run("generate", checkpoint, "--max-token", "3")
    assert status == FAILED
    assert "--max-tokens" in err


def test_ctrl_c_ends_with_a_friendly_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("retnet.hub.load", interrupt)
    status, _, err = run("generate", "somewhere")
    assert status == INTERRUPTED == 130
    assert err == "\nstopped\n"


def test_version_is_the_packages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.metadata, "version", lambda name: f"1.2.3 of {name}")
    assert run("--version") == (OK, "retnet 1.2.3 of retnet\n", "")


def test_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "retnet", "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == FAILED
    assert done.stderr.startswith("error: ")


def test_a_reader_that_leaves_early_ends_the_command_quietly(checkpoint: Path) -> None:
    """As `retnet generate ... | head` does."""
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "retnet", "generate", str(checkpoint), "--max-tokens", "5"]
    with (
        open(writer, "w") as out,
        forks.Popen(words, stdout=out, stderr=forks.PIPE, text=True) as process,
    ):
        _, said = process.communicate()
    assert (process.returncode, said) == (OK, "")
