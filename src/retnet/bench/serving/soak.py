"""A server in use for minutes: clients that stay, leave and come too many, and a SIGKILL.

Every request must end in a way that its client understands, and every turn that a client was told
is kept must be there after the kill.
"""

import json
import random
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy as np

from retnet.bench.cases import QUICK_SOAK, SOAK, SoakCase
from retnet.bench.record import Gate, GateFailed
from retnet.bench.serving.client import Broken, Client, Left
from retnet.bench.serving.conversation import Conversation, Said
from retnet.bench.serving.process import Server, save_fresh
from retnet.bench.serving.soak_plot import plot_soak
from retnet.bench.session import Session
from retnet.bench.timing import Spread

BENCH, MEMORY = "serve/soak", "serve/soak_memory"
MODEL = "soak"
SAMPLE_S = 0.5
BINS = 60
ENDINGS = ("completed", "refused", "aborted", "cut", "lost")
"""How a request can end: as asked; 429 or 409; the client left; the server was killed; or none."""

WORDS = "a state that never grows reads every word once and forgets as it was made to forget"


class Sample(NamedTuple):
    """The server at a moment.

    Attributes:
        at_s: since the beginning.
        process: 1 before the kill, 2 after it.
        rss_bytes: memory in use.
        completed: requests so far.
    """

    at_s: float
    process: int
    rss_bytes: int
    completed: int


def bench_soak(session: Session) -> None:
    """Record how the requests ended, what was kept, and the slope of memory; draw `soak.png`."""
    case = QUICK_SOAK if session.quick else SOAK
    if session.minutes is not None:
        case = case.of_minutes(session.minutes)
    session.plan(3)
    with tempfile.TemporaryDirectory(prefix="retnet-soak-") as name:
        folder = Path(name, MODEL)
        save_fresh(folder, case.preset)
        data = str(Path(name, "sessions"))
        words = ("--running", str(case.running), "--queue", str(case.queue), "--data-dir", data)
        words += ("--memory", str(case.memory_mib))
        with Server(folder, *words) as server:
            soak = Soak(server, case)
            session.begin(f"{case.clients} clients for {case.minutes:g} minutes")
            metrics, wrong = soak.run(session.begin)
    fields = {
        "model": case.preset,
        "minutes": case.minutes,
        "clients": case.clients,
        "B": case.running,
        "queue": case.queue,
    }
    gate = Gate(not wrong, "; ".join(wrong[:5]))
    try:
        session.recorder.add(BENCH, fields, {k: Spread.of([v]) for k, v in metrics.items()}, gate)
        for part, kept in soak.timeline():
            session.recorder.add(MEMORY, fields | part, kept, gate)
    except GateFailed as error:
        session.fail(BENCH, error)
    session.draw("soak.png", plot_soak)
    session.end()


class Soak:
    """The clients, and what becomes of their requests."""

    def __init__(self, server: Server, case: SoakCase) -> None:
        """Prepare for a server that runs."""
        self._server = server
        self._case = case
        self._lock = threading.Lock()
        self._ended = Counter[str]()
        self._lost: list[str] = []
        self._tokens = 0
        self._life = 1  # of the server
        self._up, self._over = threading.Event(), threading.Event()
        self._conversations: list[Conversation] = []
        self._samples: list[Sample] = []
        self._begin = perf_counter()

    def run(self, tell: Callable[[str], None]) -> tuple[dict[str, float], list[str]]:
        """Let it all happen; return the figures, and what is wrong."""
        threads = [
            threading.Thread(target=self._client, args=(number,), daemon=True)
            for number in range(self._case.clients)
        ]
        seconds = 60 * self._case.minutes
        self._begin = perf_counter()
        self._up.set()
        for thread in threads:
            thread.start()
        self._watch(seconds / 2)
        tell("SIGKILL, and the server is started again")
        self._up.clear()
        self._life += 1
        self._server.kill()
        restart_s = self._server.start()
        before = list(self._conversations)
        wrong = self._check(before)
        turns = sum(len(one.said) for one in before)
        self._up.set()
        self._watch(seconds / 2)
        self._over.set()
        for thread in threads:
            thread.join()
        tell("every conversation is compared and some are replayed")
        wrong += self._check(self._conversations)
        leaked = self._leaked()
        replayed, ties = self._replay(wrong)
        status = self._server.stop()
        ended = {name: float(self._ended[name]) for name in ENDINGS}
        wrong += self._lost
        wrong += [f"{leaked:g} rows are held by nobody"] * (leaked > 0)
        wrong += [f"the server ended with status {status}"] * (status != 0)
        metrics = {
            "sent": sum(ended.values()),
            **ended,
            "completed_per_s": ended["completed"] / seconds,
            "tokens": float(self._tokens),
            "conversations": float(len(self._conversations)),
            "turns_before_the_kill": float(turns),
            "turns": float(sum(len(one.said) for one in self._conversations)),
            "turns_lost": 0.0,  # or the gate had not passed
            "replayed": float(replayed),
            "replayed_to_a_tie": float(ties),
            "leaked_rows": leaked,
            "restart_s": restart_s,
        }
        for process in (1, 2):
            metrics |= self._memory(process)
        return metrics, wrong

    def timeline(self) -> list[tuple[dict[str, Any], dict[str, Spread]]]:
        """Memory and requests per second, in parts of equal length."""
        width = max(60 * self._case.minutes / BINS, 3 * SAMPLE_S)
        found = []
        for process in (1, 2):
            mine = [one for one in self._samples if one.process == process]
            for number in sorted({int(one.at_s / width) for one in mine}):
                part = [one for one in mine if int(one.at_s / width) == number]
                if len(part) < 2:
                    continue
                rate = (part[-1].completed - part[0].completed) / (part[-1].at_s - part[0].at_s)
                metrics = {
                    "rss_mib": Spread.of([one.rss_bytes / 2**20 for one in part]),
                    "completed_per_s": Spread.of([rate]),
                }
                where = {"process": process, "at_s": round(part[-1].at_s, 1)}
                found.append((where, metrics))
        return found

    def _watch(self, seconds: float) -> None:
        end = perf_counter() + seconds
        while perf_counter() < end:
            now = perf_counter() - self._begin
            done = self._ended["completed"]
            self._samples.append(Sample(now, self._life, self._server.rss_bytes(), done))
            sleep(SAMPLE_S)

    def _memory(self, process: int) -> dict[str, float]:
        """Kilobytes per minute, without the first part, in which the caches fill."""
        mine = [one for one in self._samples if one.process == process]
        mine = mine[int(self._case.warm * len(mine)) :]
        slope = np.polyfit([s.at_s / 60 for s in mine], [s.rss_bytes / 1000 for s in mine], 1)[0]
        return {
            f"rss_slope_kb_per_minute_{process}": float(slope),
            f"rss_mib_{process}": mine[-1].rss_bytes / 2**20,
        }

    def _leaked(self) -> float:
        """Rows that are held once all is quiet."""
        client, rows = Client(self._server.port), 1.0
        begin = perf_counter()
        while rows > 0 and perf_counter() - begin < 10:
            _, text = client.get("/metrics")
            lines = dict(
                line.rsplit(" ", 1) for line in text.decode().splitlines() if line[0] != "#"
            )
            names = ("retnet_rows_used", "retnet_requests_running", "retnet_requests_waiting")
            rows = sum(float(lines[name]) for name in names)
        return rows

    def _check(self, conversations: list[Conversation]) -> list[str]:
        client = Client(self._server.port)
        return [why for one in conversations for why in one.check(client)]

    def _replay(self, wrong: list[str]) -> tuple[int, int]:
        """Replay conversations of whose every turn the client knows; those that are longest."""
        client, ties = Client(self._server.port), 0
        known = [one for one in self._conversations if one.said and not one.doubts]
        chosen = sorted(known, key=lambda one: -len(one.said))[: self._case.replays]
        for one in chosen:
            differs = one.replay(client, MODEL, " And then?")
            ties += differs == "tie"
            wrong += [differs] * (differs not in ("", "tie"))
        return len(chosen), ties

    def _client(self, number: int) -> None:
        draw = random.Random(number)
        talks = number < self._case.clients * self._case.talkers
        talk: Conversation | None = None
        while not self._over.is_set():
            life = self._life  # before waiting: whatever breaks later, was it another life?
            if not self._up.wait(0.1):
                continue
            if talks and (talk is None or len(talk.said) >= self._case.turns):
                talk = self._new(number)
            ending, pause_s = self._ask(draw, talk, life)
            with self._lock:
                self._ended[ending] += 1
            if pause_s:
                self._over.wait(pause_s)

    def _new(self, number: int) -> Conversation:
        """Begin a conversation, and forget the oldest that has ended if there are too many."""
        talk = Conversation(f"client-{number}-{perf_counter():.6f}")
        with self._lock:
            self._conversations.append(talk)
            old = self._conversations[0]
            many = len(self._conversations) > self._case.kept and len(old.said) >= self._case.turns
            if many:
                self._conversations.pop(0)
        if many:
            with suppress(Broken):
                Client(self._server.port).delete(f"/v1/sessions/{old.name}")
        return talk

    def _ask(self, draw: random.Random, talk: Conversation | None, life: int) -> tuple[str, float]:
        """Send a request; how it ended, and how long to wait before the next."""
        stream = draw.random() < 0.5
        prompt = _prompt(draw)
        most = draw.choice((1, 8, 16, 32, 64, 200))
        leaves = draw.random() < self._case.leaving
        client = Client(self._server.port)
        if talk is None:
            body = {"model": MODEL, "prompt": prompt, "max_tokens": most, "stream": stream}
            body |= {"seed": draw.randrange(100)}
        else:
            body = talk.body(MODEL, prompt, most, stream=stream)
        doubts = 0 if talk is None else talk.doubts
        if talk is not None:
            talk.doubts += 1  # until there is an answer
        try:
            answer = client.complete(
                body,
                leave_after=draw.randint(1, 8) if leaves and stream else None,
                leave_s=draw.uniform(0.005, 0.2) if leaves and not stream else None,
            )
        except Left:
            return "aborted", 0.0
        except Broken as why:
            if life != self._life:
                return "cut", 0.0
            self._lost.append(f"a request broke: {why}")
            return "lost", 0.0
        except (ValueError, KeyError) as why:
            self._lost.append(f"an answer is not understood: {why!r}")
            return "lost", 0.0
        if answer.status in (409, 429):
            if talk is not None:
                talk.doubts = doubts
            return "refused", answer.retry_s
        if answer.status != 200:
            if life != self._life:
                return "cut", 0.0
            self._lost.append(f"status {answer.status}: {json.dumps(answer.body)[:200]}")
            return "lost", 0.0
        if talk is not None:
            kept = answer.body["session"]
            turn = Said(prompt, answer.text, kept["version"], kept["num_tokens"], most)
            talk.said.append(turn)
            talk.doubts = doubts
        with self._lock:
            self._tokens += len(answer.text)
        return "completed", 0.0


def _prompt(draw: random.Random) -> str:
    """Some words, or one of a few long texts, as system prompts are."""
    if draw.random() < 0.1:
        return f"{WORDS}. " * draw.choice((4, 8, 16)) + draw.choice(WORDS.split())
    return " ".join(draw.choices(WORDS.split(), k=draw.randint(1, 12)))
