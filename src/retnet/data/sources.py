"""From what the configuration names to files and data sets, and what tells them from others."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from retnet.data.config import DataConfig
from retnet.data.corpus import Source, find_files, unreadable
from retnet.data.data_set import PREFIX, find_data_set

Stamp = list[str | int]
"""Changes when the text of a file or data set does."""

Stamps = dict[str, list[Stamp]]
"""Of train, and of valid."""


class Sources(NamedTuple):
    """What the configuration names; no `valid` where a part of train is held out."""

    train: tuple[Source, ...]
    valid: tuple[Source, ...]

    def stamps(self) -> Stamps:
        """Write down what tells these sources from others, and from themselves when they change.

        Raises:
            ValueError: a file has vanished.
        """
        return {
            name: [stamp for source in sources for stamp in _stamps(source)]
            for name, sources in self._asdict().items()
        }


def find_sources(config: DataConfig, base: Path) -> Sources:
    """Find all that the configuration names, each once, in its order.

    Args:
        config: what to read.
        base: where relative paths start.

    Raises:
        ValueError: an entry matches nothing, or train and valid share a source.
    """

    def find(entries: Iterable[str], option: str) -> tuple[Source, ...]:
        found: dict[Source, None] = {}
        for entry in entries:
            if entry.startswith(PREFIX):
                found[find_data_set(entry, base, streaming=config.streaming)] = None
            else:
                found.update(dict.fromkeys(find_files([entry], base, option=option)))
        return tuple(found)

    sources = Sources(find(config.train, "train"), find(config.valid, "valid"))
    if shared := sorted(str(s) for s in set(sources.train) & set(sources.valid)):
        raise ValueError(
            f"valid must share nothing with train, and both name {shared[0]}; take it "
            "out of one of them in [data]"
        )
    return sources


def _stamps(source: Source) -> list[Stamp]:
    if isinstance(source, Path):
        return [_file_stamp(source)]
    own: Stamp = [str(source)]
    if source.folder is None:  # a commit never changes
        return [own]
    files = sorted(path for path in source.folder.rglob("*") if path.is_file())
    return [own, *(_file_stamp(path) for path in files)]


def _file_stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    return [str(path), stat.st_size, stat.st_mtime_ns]
