"""A data set of the Hugging Face `datasets` library: how it is named, and how it is read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retnet.data.rows import BATCH_ROWS, brief, check_column, column_texts, optional_library

PREFIX = "hf:"

# The split may be sliced, as in train[:10%], and so hold a colon itself.
ENTRY = re.compile(
    r"hf:(?P<name>[^:@]+)"
    r"(?:@(?P<revision>[^:@]+))?"
    r"(?::(?P<config>[^:\[\]]+)(?=:))?"
    r"(?::(?P<split>[^:\[\]]+(?:\[[^\[\]]*\][^:\[\]]*)*))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
SAVED = ("state.json", "dataset_dict.json")
"""One of these lies in a folder that `save_to_disk` has written."""


class DataSetName(NamedTuple):
    """The parts of an entry `hf:NAME[@REVISION][[:CONFIG]:SPLIT]`; what is not given is empty."""

    name: str
    revision: str
    config: str
    split: str


def parse_entry(entry: str) -> DataSetName:
    """Take an entry apart.

    Raises:
        ValueError: it is not in the form that `DataSetName` gives.

    Example:
        >>> parse_entry("hf:Salesforce/wikitext:wikitext-2-raw-v1:train[:10%]").split
        'train[:10%]'
    """
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(
            f"{entry!r} must name a data set as 'hf:NAME', 'hf:NAME:SPLIT' or "
            "'hf:NAME:CONFIG:SPLIT', with '@REVISION' after NAME if wanted; correct the entry"
        )
    return DataSetName(**match.groupdict(default=""))


@dataclass(frozen=True)
class DataSet:
    """A split of a data set on the hub, or in a folder.

    Attributes:
        name: on the hub, or the absolute path of a folder.
        revision: the commit on the hub; empty for a folder.
        config: the part of the data set; empty for its only or default one.
        split: empty for `train`, or for the only one that a folder of `save_to_disk` holds.
        streaming: read it over the network as it is needed, rather than download it first.
    """

    name: str
    revision: str
    config: str
    split: str
    streaming: bool

    def __str__(self) -> str:
        """The entry that names it."""
        parts = [self.name + ("@" + self.revision if self.revision else "")]
        return PREFIX + ":".join(parts + [part for part in (self.config, self.split) if part])

    @property
    def folder(self) -> Path | None:
        """Where it lies, unless it lies on the hub."""
        return None if self.revision else Path(self.name)

    def texts(self, text_field: str) -> Iterator[str]:
        """Yield the texts of a column, in order; null is no text.

        Raises:
            ValueError: the library is missing, there is no such data set, configuration, split or
                column, the column holds something else than text, or the network fails.
        """
        library = optional_library("datasets", reads=str(self))
        batches = self._batches(library, text_field)
        yield from column_texts(batches, text_field, where=str(self))

    def _batches(self, library, text_field: str) -> Iterator[list]:
        with self._explained(), _no_bars(library):
            rows = self._open(library)
        if rows.column_names is not None:  # streamed JSON and CSV tell them only with the rows
            check_column(rows.column_names, text_field, where=str(self))
            rows = rows.select_columns([text_field])
        batches = rows.iter(batch_size=BATCH_ROWS)
        while True:
            with self._explained():
                batch = next(batches, None)
            if batch is None:
                return
            check_column(batch, text_field, where=str(self))
            yield batch[text_field]

    def _open(self, library) -> Any:
        folder = self.folder
        if folder is None or not any((folder / name).is_file() for name in SAVED):
            return library.load_dataset(
                self.name,
                self.config or None,
                split=self.split or "train",
                revision=self.revision or None,
                streaming=self.streaming,
            )
        saved = library.load_from_disk(str(folder))
        splits = saved if isinstance(saved, dict) else {str(saved.split or ""): saved}
        wanted = self.split or ("train" if isinstance(saved, dict) else next(iter(splits)))
        if wanted not in splits:
            raise ValueError(f"it has no split {wanted!r}, but {sorted(splits)}")
        return splits[wanted]

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of the library, of six file formats, of three HTTP clients
            raise ValueError(
                f"{self} must be a data set that the datasets library can read "
                f"({brief(error.__cause__ or error)}); correct its name, configuration or split, "
                "or see to the network, the disk or the files"
            ) from error


def find_data_set(entry: str, base: Path, *, streaming: bool) -> DataSet:
    """Find out what an entry names: a folder, or the commit of a data set on the hub.

    Args:
        entry: see `DataSetName`.
        base: where the path of a folder starts if it is relative.
        streaming: see `DataSet`.

    Raises:
        ValueError: the entry is malformed, or there is neither such a folder nor such a data set.
    """
    name, revision, config, split = parse_entry(entry)
    folder = (base / Path(name).expanduser()).resolve()
    if folder.is_dir() and not revision:
        return DataSet(str(folder), "", config, split, streaming)
    return DataSet(name, _commit(entry, name, revision, base), config, split, streaming)


def _commit(entry: str, name: str, revision: str, base: Path) -> str:
    """Ask the hub what a branch or tag stands for now; a commit stands for itself."""
    if COMMIT.fullmatch(revision):
        return revision
    hub = optional_library("huggingface_hub", reads=entry)
    try:
        return hub.HfApi().dataset_info(name, revision=revision or None, timeout=30).sha
    except Exception as error:  # of the library, and of whichever HTTP client it uses
        raise ValueError(
            f"{entry!r} must name a folder (relative names start at {base.absolute()}) or a data "
            f"set on the hub, and the hub says: {brief(error)}; correct the name, see to the "
            "network, or, to use without a network what was prepared before, give the commit as "
            "'hf:NAME@COMMIT', in 40 hexadecimal digits"
        ) from error


@contextmanager
def _no_bars(library) -> Iterator[None]:
    """Keep the library's progress bars out of ours."""
    if library.are_progress_bars_disabled():  # the user has: so they stay
        yield
        return
    library.disable_progress_bars()
    try:
        yield
    finally:
        library.enable_progress_bars()
