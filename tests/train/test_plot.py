import pytest

from retnet.train import plot_metrics
from retnet.train.plot import smooth

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
