"""Random arrivals, cancellations and lengths; no tensors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.serve.engine.scheduler import QueueFull, Scheduler

MAX_ROWS, QUEUE, BUDGET = 4, 3, 9


class Server:
    """Runs a scheduler as an engine does: a token of each text in every step."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(MAX_ROWS, QUEUE)
        self.asked: dict[int, tuple[int, int, int]] = {}  # rows, length, tokens to write
        self.read: dict[int, int] = {}
        self.left: dict[int, list[int]] = {}
        self.ended: list[int] = []
        self.admitted: list[int] = []

    def step(self) -> None:
        for key in list(self.left):
            for text in range(len(self.left[key]) - 1, -1, -1):
                self.left[key][text] -= 1
                if self.left[key][text] <= 0:
                    self.left[key].pop(text)
                    self.scheduler.release(key)
            if not self.left[key]:
                del self.left[key]
                self.ended.append(key)
        admitted = self.scheduler.admit()
        self.admitted += admitted
        for key in admitted:
            self.read[key] = 0
        reading = [key for key, done in self.read.items() if done < self.asked[key][1]]
        chunks = self.scheduler.plan(BUDGET)
        assert sum(chunk.stop - chunk.start for chunk in chunks) <= BUDGET
        assert sorted(chunk.key for chunk in chunks) == sorted(reading), "everybody gets on"
        for key, start, stop in chunks:
            assert start == self.read[key]
            assert start < stop <= self.asked[key][1]
            self.read[key] = stop
            if stop == self.asked[key][1]:
                self.left[key] = [self.asked[key][2]] * self.asked[key][0]
        held = sum(
            len(self.left[key]) if key in self.left else self.asked[key][0]
            for key in self.read
            if key not in self.ended
        )
        assert self.scheduler.num_rows == held <= MAX_ROWS

    def cancel(self, key: int) -> None:
        self.scheduler.remove(key)
        self.left.pop(key, None)
        self.read.pop(key, None)
        self.ended.append(key)


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, MAX_ROWS), st.integers(1, 40), st.integers(1, 12)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0), st.just(0)),
        st.tuples(st.just("step"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.lists(st.integers(1, 39), max_size=3))
def test_nobody_starves_no_row_is_held_twice_and_the_budget_is_kept(
    events: list[tuple[str, int, int, int]], marks: list[int]
) -> None:
    server, keys, waited = Server(), 0, []
    for what, first, length, tokens in events:
        if what == "step":
            server.step()
        elif what == "cancel":
            if first in server.asked and first not in server.ended:
                server.cancel(first)
                waited = [key for key in waited if key != first]
        else:
            server.asked[keys] = (first, length, tokens)
            try:
                server.scheduler.add(keys, first, length, sorted(set(marks)))
            except QueueFull:
                assert server.scheduler.num_waiting == QUEUE
                del server.asked[keys]
            else:
                waited.append(keys)
            keys += 1
    for _ in range(QUEUE * 60 + MAX_ROWS * 60):
        server.step()
    assert set(server.ended) == set(server.asked)
    assert server.admitted == sorted(server.admitted), "in the order of arrival"
    assert server.scheduler.num_rows == server.scheduler.num_waiting == 0


def test_a_budget_is_shared_equally_and_what_one_cannot_use_is_the_others() -> None:
    scheduler = Scheduler(3, 3)
    for key, length in enumerate((1000, 3, 1000)):
        scheduler.add(key, 1, length, [])
    assert scheduler.plan(100) == []
    assert scheduler.admit() == [0, 1, 2]
    sizes = {chunk.key: chunk.stop - chunk.start for chunk in scheduler.plan(101)}
    assert sizes == {0: 49, 1: 3, 2: 49}


def test_chunks_end_at_borders_and_begin_after_what_is_skipped() -> None:
    scheduler = Scheduler(1, 1)
    scheduler.add(7, 1, 50, [8, 20, 30])
    scheduler.admit()
    scheduler.skip(7, 10)
    got = [chunk for _ in range(4) for chunk in scheduler.plan(15)]
    assert got == [(7, 10, 20), (7, 20, 30), (7, 30, 45), (7, 45, 50)]


def test_a_request_of_many_rows_is_not_overtaken() -> None:
    scheduler = Scheduler(4, 9)
    for key, rows in enumerate((3, 4, 1)):
        scheduler.add(key, rows, 1, [])
    assert scheduler.admit() == [0]
    for _ in range(3):
        assert scheduler.admit() == []
        scheduler.release(0)
    assert scheduler.admit() == [1]


def test_a_full_queue_says_when_to_come_back() -> None:
    scheduler = Scheduler(1, 1)
    scheduler.add(0, 1, 1, [])
    with pytest.raises(QueueFull, match="1 requests are waiting, as many as may; try again in 3"):
        scheduler.add(1, 1, 1, [], retry_after_s=3.0)
