"""Choose the documents to learn from and those to validate with."""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from retnet.data.progress import Progress, reported

READING = "reading"


@dataclass(frozen=True)
class Selection:
    """A part of some documents, to be read as often as needed.

    Attributes:
        documents: what to choose from.
        choose: given a document's number and text, the text of it that belongs to the selection;
            an empty string leaves the document out.
        num_bytes: UTF-8 bytes of the whole selection.
    """

    documents: Iterable[str]
    choose: Callable[[int, str], str]
    num_bytes: int

    def __iter__(self) -> Iterator[str]:
        for number, text in enumerate(self.documents):
            if chosen := self.choose(number, text):
                yield chosen


def text_hash(text: str) -> int:
    """Return 64 bits that depend on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def select_all(
    documents: Iterable[str], *, option: str, progress: Progress | None = None
) -> Selection:
    """Read the documents once, to check and measure them, and select every one.

    Args:
        documents: an iterable that can be iterated again.
        option: the name of the option that they come from, for the message.
        progress: of the one pass that this makes.

    Raises:
        ValueError: there is no text.
    """
    texts = reported(documents, READING, None, progress)
    num_bytes = sum(len(text.encode()) for text in texts)
    if not num_bytes:
        raise ValueError(
            f"{option} must hold text, and its files hold 0 bytes of it; name others in [data]"
        )
    return Selection(documents, lambda _, text: text, num_bytes)


def split_documents(
    documents: Iterable[str], fraction: float, progress: Progress | None = None
) -> tuple[Selection, Selection]:
    """Split documents into training and validation, the same way every time.

    Held out are the documents with the smallest hashes, as many as fit into the share; so hardly a
    document changes sides when others come or go, and copies stay on one side. Where that is less
    than half of the share, because there are only a few long documents, the tail of the longest is
    held out instead, from a line border if one is near.

    Args:
        documents: an iterable that can be iterated again.
        fraction: share of the bytes to hold out, between 0 and 1.
        progress: of the one pass that this makes.

    Returns:
        What to train on, and what to validate with.

    Raises:
        ValueError: no document has two characters.
    """
    hash_list, size_list = array("Q"), array("q")
    longest_number, longest = 0, ""
    for number, text in enumerate(reported(documents, READING, None, progress)):
        hash_list.append(text_hash(text))
        size_list.append(len(text.encode()))
        if len(text) > len(longest):
            longest_number, longest = number, text
    if len(longest) < 2:
        raise ValueError(
            f"train must hold enough text to hold some out, and its files hold {sum(size_list)} "
            "bytes of it; name others in [data], or name validation files in valid"
        )
    hashes, sizes = np.array(hash_list), np.array(size_list)
    total = int(sizes.sum())
    order = np.argsort(hashes)
    num_held = np.searchsorted(sizes[order].cumsum(), fraction * total, side="right")
    limit = int(hashes[order[num_held]])  # exists: all together exceed any share below 1
    held_bytes = int(sizes[hashes < limit].sum())
    if held_bytes >= fraction * total / 2:
        return (
            Selection(
                documents, lambda _, t: t if text_hash(t) >= limit else "", total - held_bytes
            ),
            Selection(documents, lambda _, t: t if text_hash(t) < limit else "", held_bytes),
        )
    # Never more than half of it, or a few small documents would leave little to learn from.
    share = min(fraction * total / len(longest.encode()), 0.5)
    cut = _line_border(longest, round(len(longest) * (1 - share)))
    held_bytes = len(longest[cut:].encode())
    return (
        Selection(
            documents, lambda n, t: t[:cut] if n == longest_number else t, total - held_bytes
        ),
        Selection(documents, lambda n, t: t[cut:] if n == longest_number else "", held_bytes),
    )


def evenly(texts: Iterable[str], num_bytes: int, max_bytes: int) -> Iterator[str]:
    """Yield texts spread over all, about max_bytes of them together; all where they are fewer.

    Args:
        texts: the first is always taken.
        num_bytes: UTF-8 bytes of all.
        max_bytes: how many to take.
    """
    done = taken = 0
    for text in texts:
        if taken * num_bytes <= done * max_bytes:
            yield text
            taken += len(text.encode())
        done += len(text.encode())


def _line_border(text: str, position: int) -> int:
    """Return the line start nearest to `position`, or `position` where none is near.

    Near means that it changes the length of the tail by at most a half. Neither side is empty.
    """
    position = min(max(position, 1), len(text) - 1)
    after = text.find("\n", position, len(text) - 1) + 1
    before = text.rfind("\n", 0, position) + 1
    borders = [border for border in (after, before) if border]
    nearest = min(borders, key=lambda border: abs(border - position), default=position)
    return nearest if abs(nearest - position) <= (len(text) - position) / 2 else position
