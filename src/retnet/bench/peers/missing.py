"""What is said when a peer is not installed."""

import importlib
import importlib.metadata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class PeerMissing(RuntimeError):
    """A peer cannot be imported; the message and `install` say how to get it.

    Args:
        peer: name of the package.
        reason: what is wrong, as the rest of the sentence.
        install: the shell command that puts it right.
    """

    def __init__(self, peer: str, reason: str, install: str) -> None:
        super().__init__(f"{peer} {reason}; it is optional, to measure beside ours: {install}")
        self.peer = peer
        self.install = install


def import_peer(module: str, peer: str, install: str) -> ModuleType:
    """Import a module of a peer.

    Args:
        module: its name.
        peer: the package that has it, as pip calls it.
        install: the shell command that installs the package.

    Raises:
        PeerMissing: it, or a module that it needs, is not installed, or does not load.
    """
    try:
        with what_it_calls_may_be_deprecated():
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name is not None and module.split(".")[0] == error.name.split(".")[0]
        reason = "is not installed" if missing else f"lacks the module {error.name}"
        raise PeerMissing(peer, reason, install) from error
    except (ImportError, OSError, RuntimeError) as error:  # another version's, or a library's own
        raise PeerMissing(peer, f"does not load ({error})", install) from error


@contextmanager
def what_it_calls_may_be_deprecated() -> Iterator[None]:
    """No warnings of what a peer calls: nobody here can mend that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def peer_version(peer: str, install: str) -> str:
    """Version of a package, to be written beside its results.

    Raises:
        PeerMissing: it is not installed.
    """
    try:
        return importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError as error:
        raise PeerMissing(peer, "is not installed", install) from error
