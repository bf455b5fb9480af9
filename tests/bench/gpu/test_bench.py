"""The suite's order: within time, and losing nothing to a step that fails."""

from collections.abc import Callable
from pathlib import Path

from bench.gpu.benches import make_bench
from retnet.bench.gpu.bench import Bench, Clock, Part, Step, run_parts
from retnet.bench.record import GateFailed


class Time:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def steps(self, ran: list[str], *takes: tuple[str, float]) -> list[Step]:
        """Steps that take time by this clock."""

        def step(name: str, seconds: float) -> Callable[[Bench], None]:
            def run(_: Bench) -> None:
                self.now += seconds
                ran.append(name)

            return run

        return [Step(name, step(name, seconds), seconds) for name, seconds in takes]


def test_steps_begin_only_with_time_left_for_them_and_for_later_parts(tmp_path: Path) -> None:
    bench, time, ran = make_bench(tmp_path), Time(), list[str]()
    first = Part(time.steps(ran, ("a", 40), ("b", 30), ("c", 10)), 0.0)
    second = Part(time.steps(ran, ("d", 30), ("e", 30)), 45.0)
    run_parts(bench, [first, second], Clock(100.0, time))
    assert ran == ["a", "c", "d"]
    assert [text.partition(":")[0] for text in bench.session.skipped] == [
        "no time left for b",
        "no time left for e",
    ]


def test_what_a_step_raises_is_noted_and_the_next_one_runs(tmp_path: Path) -> None:
    bench, time, ran = make_bench(tmp_path), Time(), list[str]()

    def wrong(_: Bench) -> None:
        raise GateFailed("o errs by 1")

    def broken(_: Bench) -> None:
        raise AssertionError("CUDA error\nand a page more")

    def silent(_: Bench) -> None:
        raise KeyError

    odd = [Step("wrong", wrong, 0), Step("broken", broken, 0), Step("silent", silent, 0)]
    run_parts(bench, [Part([*odd, *time.steps(ran, ("last", 1))], 0.0)], Clock(9.0, time))
    assert bench.session.failed == [
        "wrong: o errs by 1",
        "broken: AssertionError: CUDA error",
        "silent: KeyError",
    ]
    assert ran == ["last"]
