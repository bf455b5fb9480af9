"""The upper tier: states that were used last, up to a number of bytes."""

import threading
from collections import OrderedDict

from retnet.model import state_bytes
from retnet.serve.sessions.state_file import Snapshot


class Memory:
    """Snapshots by the names of their states; those not used for longest leave first.

    A state is never changed under its name, and a name is never given twice, so nothing here is
    ever out of date, whatever other processes do: which state a session has is asked of its place.

    Attributes:
        hits: how often a snapshot was there.
        misses: how often not.
        num_bytes: what is held.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.hits = self.misses = self.num_bytes = 0
        self._limit_bytes = limit_bytes
        self._held: OrderedDict[str, tuple[Snapshot, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, file: str) -> Snapshot | None:
        """The snapshot, which then leaves last."""
        with self._lock:
            found = self._held.get(file)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._held.move_to_end(file)
            return found[0]

    def put(self, file: str, snapshot: Snapshot) -> None:
        """Hold a snapshot; one larger than everything allowed is not held."""
        if self._limit_bytes == 0:
            return
        size = _size(snapshot)
        with self._lock:
            if size > self._limit_bytes or file in self._held:
                return
            self._held[file] = snapshot, size
            self.num_bytes += size
            while self.num_bytes > self._limit_bytes:
                self.num_bytes -= self._held.popitem(last=False)[1][1]

    def drop(self, file: str) -> None:
        """Forget a snapshot, if it is there."""
        with self._lock:
            if file in self._held:
                self.num_bytes -= self._held.pop(file)[1]


def _size(snapshot: Snapshot) -> int:
    logits = snapshot.logits
    return state_bytes(snapshot.state) + (0 if logits is None else logits.nbytes)
