"""Tell whoever asked how far a pass over some text has come."""

from collections.abc import Callable, Iterable, Iterator

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, bytes done so far, and bytes in all (None: not known yet)."""

EVERY_BYTES = 1 << 20


def reported(
    texts: Iterable[str], what: str, total: int | None, progress: Progress | None
) -> Iterator[str]:
    """Yield the texts and report about once a megabyte, at the start and at the end."""
    if progress is None:
        yield from texts
        return
    done = told = 0
    progress(what, 0, total)
    for text in texts:
        yield text
        done += len(text.encode())
        if done - told >= EVERY_BYTES:
            progress(what, done, total)
            told = done
    progress(what, done, done)
