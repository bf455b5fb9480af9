"""Cells: what is done stays done, kills repeat nothing, and two workers share the rest."""

import multiprocessing
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import forks
from experiment_support import Sums, means, setup
from processes import start_server
from retnet.reproduce import executors
from retnet.reproduce.experiment import results_file
from retnet.reproduce.results import append_result, read_results
from retnet.reproduce.runner import Pace, Tally, measured_pace, run_experiment

CELLS = 2 * (2 + 1)


def begun(folder: Path) -> Counter[str]:
    """How often each cell was begun in a process of its own."""
    names = (name for name in os.listdir(folder / "work") if " " in name)
    return Counter(name.rpartition(" ")[0] for name in names)


def test_the_best_learning_rate_goes_on_to_the_other_seeds(tmp_path: Path) -> None:
    results = run_experiment(Sums(), setup(), means(tmp_path))
    assert [tuple(result.labels.values()) for result in results] == [
        ("a", 1.0, 0),
        ("a", 2.0, 0),
        ("a", 2.0, 1),
        ("bb", 1.0, 0),
        ("bb", 2.0, 0),
        ("bb", 2.0, 1),
    ]
    assert read_results(means(tmp_path).results) == results
    assert {result.scale for result in results} == {"smoke"}
    assert all(result.source.torch and result.utc for result in results)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = run_experiment(Sums(), setup("bb"), means(tmp_path))
    assert len(first) == 3
    for name in os.listdir(tmp_path / "work"):
        (tmp_path / "work" / name).unlink()
    results = run_experiment(Sums(), setup(), means(tmp_path))
    assert results[:3] == first
    assert set(begun(tmp_path)) == {"a 1.0 0", "a 2.0 0", "a 2.0 1"}


def test_what_another_experiment_of_the_folder_has_run_is_taken_over(tmp_path: Path) -> None:
    first = run_experiment(Sums(), setup("a"), means(tmp_path))
    other = replace(means(tmp_path), results=tmp_path / "results" / "others.jsonl")
    results = run_experiment(Sums(name="others"), setup(), other)
    assert set(begun(tmp_path).values()) == {1}
    assert len(results) == CELLS
    assert [r.experiment for r in results] == ["others"] * CELLS
    for result in first:
        [mine] = [r for r in results if r.settings == result.settings]
        assert replace(mine, experiment="sums") == result


def test_a_killed_run_repeats_only_the_cell_it_was_killed_in(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from retnet.reproduce.runner import run_experiment\n"
        "from experiment_support import Sums, means, setup\n"
        f"run_experiment(Sums(die=True), setup(), means(Path({str(tmp_path)!r})))\n"
    )
    words = [sys.executable, "-c", code]
    assert forks.run(words).returncode < 0
    assert len(read_results(means(tmp_path).results)) == 3
    forks.run(words, check=True)
    assert len(read_results(means(tmp_path).results)) == CELLS
    assert begun(tmp_path) == Counter(
        ["a 1.0 0", "a 2.0 0", "a 2.0 1", "bb 1.0 0", "bb 1.0 0", "bb 2.0 0", "bb 2.0 1"]
    )


def test_a_torn_line_is_no_result_and_is_written_over(tmp_path: Path) -> None:
    path = means(tmp_path).results
    results = run_experiment(Sums(), setup("a"), means(tmp_path))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    assert read_results(path) == results
    append_result(path, results[0])
    assert read_results(path) == [*results, results[0]]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"schema": 99}\n')
    with pytest.raises(ValueError, match=r"x.jsonl:1: .* is no result of schema 1"):
        read_results(path)
    path.write_text('{"schema": 1, "source": {}}\n')
    with pytest.raises(ValueError, match=r"x.jsonl:1: .* is no whole result"):
        read_results(path)


def test_two_workers_share_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell waits until two processes have begun one, so a single worker would never end.

    Workers that are forks of a clean process are given their work as those that are started anew.
    """
    start_server("forks_preload")
    forked = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(executors, "get_context", {"spawn": forked}.__getitem__)
    tallies: list[Tally] = []
    two = means(tmp_path, workers=2)
    results = run_experiment(Sums(meet=True), setup(), two, tell=tallies.append)
    assert len(results) == len({result.key for result in results}) == CELLS
    assert len({name.split()[-1] for name in os.listdir(tmp_path / "work")}) == 2
    assert (tallies[-1].done, tallies[-1].total) == (CELLS, CELLS)
    assert sum(tally.result is not None for tally in tallies) == CELLS


def test_no_cell_begins_after_the_time_is_over(tmp_path: Path) -> None:
    assert run_experiment(Sums(), setup(), means(tmp_path, minutes=1e-12)) == []
    with pytest.raises(ValueError, match=r"minutes \(0.0\) must be above 0"):
        means(tmp_path, minutes=0.0)
    with pytest.raises(ValueError, match=r"workers \(0\) must be at least 1"):
        means(tmp_path, workers=0)


def test_results_on_other_terms_are_refused(tmp_path: Path) -> None:
    run_experiment(Sums(), setup("a"), means(tmp_path))
    with pytest.raises(ValueError, match="cannot stand in one table"):
        run_experiment(Sums(terms_of="another text"), setup(), means(tmp_path))


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no model "c"; choose from a, bb'):
        run_experiment(Sums(), setup("c"), means(tmp_path))


def test_the_time_left_is_that_of_the_cells_before(tmp_path: Path) -> None:
    pace = measured_pace(Sums(), setup(), means(tmp_path), lambda _: None)
    cell = Sums().cell("a", 1.0, 0)
    assert pace.seconds([cell] * 3) == 6.0
    pace.add(cell, 10.0)
    assert pace.seconds([cell] * 3) == 30.0
    assert Pace({}).seconds([cell]) is None


def test_a_tally_counts_cells_that_are_not_known_yet(tmp_path: Path) -> None:
    tallies: list[Tally] = []
    run_experiment(Sums(), setup(), means(tmp_path), tell=tallies.append)
    assert [tally.total for tally in tallies] == [CELLS] * len(tallies)
    assert [tally.done for tally in tallies if tally.result] == list(range(1, CELLS + 1))
    assert tallies[0].seconds_left is None


def test_pages_of_the_scale_that_all_can_run_have_the_plain_name(tmp_path: Path) -> None:
    assert results_file("table5", "cpu", tmp_path) == tmp_path / "table5.jsonl"
    assert results_file("table5", "gpu", tmp_path) == tmp_path / "table5-gpu.jsonl"
