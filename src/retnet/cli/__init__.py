"""The command `retnet`: reads one word, and imports what that word needs and nothing else."""

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from typing import NamedTuple

from retnet.cli.status import FAILED, INTERRUPTED, OK

__all__ = ["main"]


class Command(NamedTuple):
    """A line of `retnet --help`; the code is `main` of the module of the same name."""

    summary: str
    example: str
    interrupted: str = "stopped"


COMMANDS = {
    "demo": Command(
        "train, score and sample a small RetNet, in about two minutes",
        "retnet demo",
        "stopped; the same command goes on from the last checkpoint",
    ),
    "train": Command(
        "train a model, or go on training it",
        "retnet train config.toml --train.steps 100",
        "stopped; the same command goes on from the last checkpoint",
    ),
    "runs": Command("compare runs in a table and a picture", "retnet runs runs"),
    "generate": Command(
        "stream text that continues yours",
        'retnet generate runs/demo --prompt "def "',
    ),
    "chat": Command("write a text in turns with a model", "retnet chat runs/demo"),
    "serve": Command(
        "serve a model over HTTP, with OpenAI's routes",
        "retnet serve runs/demo --port 8000",
    ),
    "evaluate": Command("score a model on your text files", "retnet evaluate runs/demo notes.txt"),
    "reproduce": Command(
        "run the paper's tables and figures again on this machine",
        "retnet reproduce table5 --scale smoke",
        "stopped; the same command goes on from there",
    ),
    "convert": Command(
        "turn a checkpoint of another program into ours, or back",
        "retnet convert model.safetensors runs/theirs",
        "stopped; nothing was written",
    ),
    "bench": Command("measure speed, memory and agreement", "retnet bench forms --quick"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `retnet`; None takes the process's.

    Returns:
        The exit status, see `retnet.cli.status`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else "--help"
    if first in ("-h", "--help", "help"):
        print(_help())
        return OK
    if first == "--version":
        print(f"retnet {metadata.version('retnet')}")
        return OK
    if first not in COMMANDS:
        return _fail(_unknown(first))
    return _run(first, words[1:])


def _run(name: str, words: list[str]) -> int:
    try:
        status = import_module(f"retnet.cli.{name}").main(words)
        sys.stdout.flush()
        return OK if status is None else status
    except ValueError as error:
        if sys.flags.dev_mode:  # `python -X dev -m retnet ...` shows where it came from
            raise
        return _fail(str(error))
    except KeyboardInterrupt:
        print(f"\n{COMMANDS[name].interrupted}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does. Python would complain once
        # more when it flushes at exit, so it gets somewhere to flush to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return FAILED


def _unknown(word: str) -> str:
    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.5)
    remedy = f'did you mean "retnet {near[0]}"?' if near else f"choose one of {', '.join(COMMANDS)}"
    return f'"{word}" is not a command; {remedy}'


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: retnet COMMAND [...]",
        "",
        "Train, evaluate and use language models whose memory does not grow.",
        "",
        "commands:",
    ]
    for name, command in COMMANDS.items():
        lines += [f"  {name:{width}}  {command.summary}", f"  {'':{width}}    {command.example}"]
    lines += [
        "",
        "`retnet COMMAND --help` shows its options, `retnet --version` the version.",
        "New here? Type `retnet demo`.",
    ]
    return "\n".join(lines)
