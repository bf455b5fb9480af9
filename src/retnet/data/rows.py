"""What Parquet files and data sets share: rows of columns, and libraries that may be missing."""

import importlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType

BATCH_ROWS = 64
"""Rows to decode at a time: fast enough, and even of books not much memory."""


def optional_library(name: str, *, reads: str) -> ModuleType:
    """Import a library of the extra `data`, when it is first needed.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{reads} must be read with the library {name.partition('.')[0]!r}, which is not "
            "installed; pip install 'retnet[data]' brings it"
        ) from error


def brief(error: BaseException) -> str:
    """Say in one line, and not a long one, what a library says in many."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def check_column(columns: Iterable[str], text_field: str, *, where: str) -> None:
    """Check that there is a column for the text.

    Raises:
        ValueError: there is none of that name; the message names those that there are.
    """
    if text_field not in (columns := sorted(columns)):
        raise ValueError(
            f"{where} must have the column {text_field!r}, and it has {columns}; set text_field in "
            "[data] to the one that holds the text"
        )


def column_texts(
    batches: Iterable[Sequence[object]], text_field: str, *, where: str
) -> Iterator[str]:
    """Yield the texts of a column; rows without a value are left out.

    Args:
        batches: the values of the column, some rows at a time.
        text_field: the column's name, for messages.
        where: what holds the rows, for messages.

    Raises:
        ValueError: a value is not a string.
    """
    for number, text in enumerate(itertools.chain.from_iterable(batches), 1):
        if isinstance(text, str):
            yield text
        elif text is not None:
            raise ValueError(
                f"{where}, row {number}: the column {text_field!r} must hold strings, and this is "
                f"{type(text).__name__}; set text_field in [data] to the one that holds the text"
            )
