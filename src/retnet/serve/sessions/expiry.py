"""What leaves when there is too much.

First sessions that have not changed for too long. Then, while the states are too large together,
the earlier states of sessions, those of the session that has not changed for longest first; their
newest states stay, and nothing is lost but ways back. Then whole sessions in the same order.

Each session leaves in a transaction of its own, which looks again: others may be writing to it, or
be doing the same.
"""

from retnet.serve.sessions.records import Change, Kept, Key, Records


class Gone:
    """What has left.

    Attributes:
        sessions: owner and name of each.
        states: those that no turn needs any more.
    """

    def __init__(self) -> None:
        self.sessions: list[Key] = []
        self.states: list[Kept] = []


def expire(records: Records, now: float, max_age_s: float | None, disk_bytes: int | None) -> Gone:
    """Apply the rule."""
    gone = Gone()
    if max_age_s is not None:
        for key, changed in records.oldest():
            if changed >= now - max_age_s:
                break
            _remove_old(records, gone, key, now - max_age_s)
    if disk_bytes is not None:
        oldest = [key for key, _ in records.oldest()]
        if not all(_shrink(records, gone, key, disk_bytes, whole=False) for key in oldest):
            return gone
        for key in oldest:
            if not _shrink(records, gone, key, disk_bytes, whole=True):
                break
    return gone


def _remove_old(records: Records, gone: Gone, key: Key, before: float) -> None:
    def work(change: Change) -> tuple[bool, list[Kept]]:
        head = change.head(key)
        if head is None or head.changed >= before:
            return False, []
        change.remove(key)
        return True, change.dropped

    left, dropped = records.change(work)
    gone.states += dropped
    if left:
        gone.sessions.append(key)


def _shrink(records: Records, gone: Gone, key: Key, disk_bytes: int, *, whole: bool) -> bool:
    """Drop a session, or its earlier states; return whether that was necessary."""

    def work(change: Change) -> tuple[bool, bool, list[Kept]]:
        if change.num_bytes() <= disk_bytes:
            return False, False, []
        head = change.head(key)
        if head is None:
            return True, False, []
        if whole:
            change.remove(key)
        else:
            change.forget(key, [*head.states][:-1])
        return True, whole, change.dropped

    necessary, left, dropped = records.change(work)
    gone.states += dropped
    if left:
        gone.sessions.append(key)
    return necessary
