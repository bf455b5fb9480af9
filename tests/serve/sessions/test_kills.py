"""Writers in processes of their own: some are killed, some compete."""

import os
from pathlib import Path

from redis_server import RedisServer
from retnet.serve.sessions import Identity, SessionStore
from session_support import Place, made_turn
from session_writers import (
    Writer,
    be_killed_at_lines,
    be_killed_at_moments,
    begin,
    committed,
    compete,
)

KILLS = 8
LINES_APART = 6
TURNS = 6


def test_whatever_line_a_writer_is_killed_at_every_committed_turn_is_there(
    tmp_path: Path, identity: Identity
) -> None:
    (kills,) = Writer(be_killed_at_lines, tmp_path, LINES_APART).end()
    assert kills > 20
    store = SessionStore(tmp_path, identity)
    files = list((tmp_path / "states").iterdir())
    orphans = len(files) - sum(turn.kept for turn in store.turns("text", ""))
    assert orphans > 0
    for path in files:
        os.utime(path, (0, 0))
    assert store.sweep() == orphans
    store.close()
    assert committed(tmp_path, identity) >= 1


def test_whenever_a_writer_is_killed_every_committed_turn_is_there(
    tmp_path: Path, identity: Identity
) -> None:
    (last,) = Writer(be_killed_at_moments, tmp_path, KILLS).end()
    assert committed(tmp_path, identity) == last > 0


def test_whatever_line_a_writer_to_redis_is_killed_at_every_committed_turn_is_there(
    redis_server: RedisServer, identity: Identity
) -> None:
    (kills,) = Writer(be_killed_at_lines, redis_server.address, LINES_APART).end()
    assert kills > 5
    assert committed(redis_server.address, identity) >= 0
    assert len(redis_server.states()) <= 8  # and not one more


def test_two_writers_in_two_processes_lose_nothing(place: Place, identity: Identity) -> None:
    store = SessionStore(place.address, identity)
    first = store.commit("text", "", made_turn(identity, 0), None)
    writers = [Writer(compete, place.address, w, TURNS) for w in (1, 2)]
    said = [writer.end() for writer in writers]
    turns = store.turns("text", "")
    versions = [turn.version for turn in turns]
    assert versions == sorted([first, *(version for one in said for version in one)])
    assert len(versions) == 1 + 2 * TURNS
    for writer in (1, 2):
        numbers = [t.meta["number"] for t in turns if t.meta["number"] // 1000 == writer]
        assert numbers == [1000 * writer + done for done in range(TURNS)]
    assert store.get("text", "").tokens == [turn.meta["number"] % 16 for turn in turns]
    store.close()


def test_processes_may_open_a_new_folder_at_the_same_time(
    tmp_path: Path, identity: Identity
) -> None:
    writers = [Writer(begin, tmp_path / f"{n // 3}", 0) for n in range(6)]
    said = [writer.end() for writer in writers]
    for folder in range(2):
        assert sorted(said[3 * folder : 3 * folder + 3]) == [[], [], [0]]
        assert committed(tmp_path / f"{folder}", identity) == 0
