"""What TensorBoard's own reader finds in the event files."""

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from retnet.train.metrics import Metrics, MetricsLog, read_metrics
from retnet.train.sinks import find_sinks
from retnet.train.tensorboard import TensorBoardLog


def session(folder: Path, steps: range, *, close: bool = True) -> None:
    """A session of a run that logs, validates and samples at every step."""
    log = MetricsLog(
        folder / "metrics.jsonl", before_step=steps[0], sinks=find_sinks(["tensorboard"])
    )
    for step in steps:
        place = {"step": step, "tokens": 8 * step}
        # The first step of a session that goes on knows no speed.
        speed = None if step == steps[0] else 100.0
        log.append(place | {"loss": 5 - step / 8, "tokens_per_s": speed, "seconds": 2.0 * step})
        log.append(place | {"valid_loss": 6 - step / 8, "valid_bits_per_byte": 2.0})
        log.append(place | {"sample": f"# {step}\n```<b>"})
    if close:
        log.close()


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return events


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_reads_losses_as_scalars_and_samples_as_text(tmp_path: Path) -> None:
    session(tmp_path, range(1, 4))
    events = read(tmp_path)
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "speed/tokens_per_s",
        "valid/loss",
        "valid/bits_per_byte",
    }
    assert scalars(events, "train/loss") == [(1, 4.875), (2, 4.75), (3, 4.625)]
    assert scalars(events, "valid/loss") == [(1, 5.875), (2, 5.75), (3, 5.625)]
    assert scalars(events, "speed/tokens_per_s") == [(2, 100.0), (3, 100.0)]
    text = events.Tensors("sample/text_summary")[0].tensor_proto.string_val[0]
    assert text == b"    # 1\n    ```<b>"  # Markdown for text as it is


def test_a_run_that_goes_on_shows_every_step_once(tmp_path: Path) -> None:
    """Whoever looks on meanwhile sees the same as who looks later."""
    session(tmp_path, range(1, 6))
    looking_on = read(tmp_path)
    session(tmp_path, range(4, 8))
    looking_on.Reload()
    lines = [m for m in read_metrics(tmp_path / "metrics.jsonl") if "loss" in m]
    expected = [(m["step"], m["loss"]) for m in lines]
    assert [step for step, _ in expected] == [1, 2, 3, 4, 5, 6, 7]
    for events in (looking_on, read(tmp_path)):
        assert scalars(events, "train/loss") == expected


def test_old_event_files_do_not_pile_up(tmp_path: Path) -> None:
    for _ in range(4):
        session(tmp_path, range(1, 3))
    sizes = sorted(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir())
    assert len(sizes) == 2
    assert sizes[0] == 0


def test_a_killed_session_leaves_no_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events that were still in memory are in metrics.jsonl, and come from there."""
    with monkeypatch.context() as patch:
        patch.setattr(TensorBoardLog, "append", lambda *_: None)
        session(tmp_path, range(1, 4))
    session(tmp_path, range(4, 5))
    assert [step for step, _ in scalars(read(tmp_path), "train/loss")] == [1, 2, 3, 4]


def test_time_is_time_spent_training(tmp_path: Path) -> None:
    past: list[Metrics] = [
        {"step": s, "tokens": s, "loss": 1.0, "seconds": 9.0 * s} for s in (1, 2)
    ]
    log = TensorBoardLog(tmp_path, past)
    log.append({"step": 3, "tokens": 3, "loss": 1.0, "seconds": 27.0})
    log.close()
    times = [event.wall_time for event in read(tmp_path).Scalars("train/loss")]
    assert [time - times[0] for time in times] == pytest.approx([0, 9, 18], abs=1e-3)
