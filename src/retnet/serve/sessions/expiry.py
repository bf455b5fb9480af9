"""What leaves when there is too much.

First sessions that have not changed for too long. Then, while the state files are too large
together, the earlier states of sessions, those of the session that has not changed for longest
first; their newest states stay, and nothing is lost but ways back. Then whole sessions in the same
order.
"""

import sqlite3

from retnet.serve.sessions.index import Unused, drop_session, drop_states, find_turns


def expire(
    db: sqlite3.Connection, now: float, max_age_s: float | None, disk_bytes: int | None
) -> tuple[list[tuple[str, str]], list[Unused]]:
    """Apply the rule, in a write transaction.

    Returns:
        Owner and name of the sessions that are gone, and the files to delete.
    """
    gone: list[tuple[str, str]] = []
    unused: list[Unused] = []
    oldest = db.execute("SELECT id, owner, name, changed FROM sessions ORDER BY changed, id")
    left = oldest.fetchall()
    while max_age_s is not None and left and left[0][3] < now - max_age_s:
        session, owner, name, _ = left.pop(0)
        unused += drop_session(db, session)
        gone.append((owner, name))
    if disk_bytes is None:
        return gone, unused
    (total,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM states").fetchone()
    for session, *_ in left:
        if total <= disk_bytes:
            break
        kept = [turn.version for turn in find_turns(db, session) if turn.file is not None]
        freed = drop_states(db, session, kept[:-1])
        unused, total = unused + freed, total - sum(state.num_bytes for state in freed)
    for session, owner, name, _ in left:
        if total <= disk_bytes:
            break
        freed = drop_session(db, session)
        unused, total = unused + freed, total - sum(state.num_bytes for state in freed)
        gone.append((owner, name))
    return gone, unused
