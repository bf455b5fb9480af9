import pytest

from retnet.train import plot_metrics
from retnet.train.plot import curve, plot_runs, smooth

METRICS = [
    {"step": 1, "tokens": 10, "loss": 5.0},
    {"step": 2, "tokens": 20, "loss": 4.0},
    {
        "step": 2,
        "tokens": 20,
        "valid_bits_per_byte": 3.0,
        "valid_bits_per_byte_carried": 2.9,
    },
    {"step": 3, "tokens": 30, "sample": "text"},
]


@pytest.mark.parametrize("metrics", [METRICS, METRICS[:1], []])
def test_a_picture_is_drawn_from_whatever_there_is(tmp_path, metrics):
    plot_metrics(metrics, tmp_path / "loss.png", "a run")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["loss.png"]


def test_smoothing_takes_out_noise_and_does_not_lag():
    line = [float(i) for i in range(1000)]
    noisy = [value + (-1) ** i * 50 for i, value in enumerate(line)]
    inner = slice(10, -10)
    assert smooth(line) == pytest.approx(line)
    assert smooth(noisy)[inner] == pytest.approx(line[inner], abs=2.5)
    assert smooth(line[:50]) == line[:50]
    assert smooth([]) == []


@pytest.mark.parametrize("count", [1, 3, 25])
def test_many_runs_are_drawn_in_one_picture(tmp_path, count):
    runs = {f"run [{i}]": (METRICS, METRICS[:1], [])[i % 3] for i in range(count)}
    plot_runs(runs, tmp_path / "runs.png", "runs")
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["runs.png"]


def test_a_curve_has_only_the_lines_that_know_the_value():
    assert curve([*METRICS, {"step": 4, "tokens": 40, "loss": None}], "loss") == (
        [10, 20],
        [5.0, 4.0],
    )
