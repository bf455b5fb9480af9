"""Let the `tokenizers` library use all cores without its warning about forks, or a deadlock."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "TOKENIZERS_PARALLELISM"

USER_CHOICE = os.environ.get(VARIABLE)
"""What was set before we touched it; the user's choice is never changed."""

FIRST_PROCESS = os.getpid()
"""A fork of it has the library's thread pool without the threads: parallel work there hangs."""


@contextmanager
def all_cores() -> Iterator[None]:
    """Tokenise in parallel inside the block, unless the process is a fork or the user said no.

    A process that has tokenised in parallel and then forks (a data loader, a compiler, a shell
    command) prints a warning at every fork unless the variable is set, and its children hang
    unless it says no. So it says no from the end of the block on.
    """
    if USER_CHOICE is not None:
        yield
        return
    os.environ[VARIABLE] = "true" if os.getpid() == FIRST_PROCESS else "false"
    try:
        yield
    finally:
        os.environ[VARIABLE] = "false"
