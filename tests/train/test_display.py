import io
import sys

import pytest
from rich.console import Console

from retnet.train.display import Display, Pace, RunningMean, clock_time


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def make_display(terminal):
    file = io.StringIO()
    return Display(Console(file=file, force_terminal=terminal, width=120)), file


def test_a_running_mean_of_equal_values_is_that_value_from_the_first_on():
    mean = RunningMean()
    assert mean.value == 0
    for _ in range(3):
        mean.add(5.0)
        assert mean.value == pytest.approx(5.0)


def test_pace_counts_steps_for_speed_and_everything_for_the_time_left():
    clock = Clock()
    pace = Pace(tokens_per_step=600, clock=clock)
    assert (pace.tokens_per_s, pace.seconds_left(10)) == (0, 0)
    for _ in range(4):
        pace.begin_step()
        clock.now += 2
        pace.end_step()
        clock.now += 1  # validation, saving
    assert pace.tokens_per_s == pytest.approx(300)
    assert pace.training_seconds == 8
    assert pace.seconds_left(10) == pytest.approx(30)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (754.0, "12:34"), (36061.0, "10:01:01")]
)
def test_times_read_as_on_a_clock(seconds, text):
    assert clock_time(seconds) == text


def test_a_pipe_gets_few_plain_lines_with_the_last_step_among_them():
    display, file = make_display(terminal=False)
    pace = Pace(100)
    with display.training(0, 1000):
        for step in range(1, 1001):
            display.step(step, 2.5, pace)
    lines = file.getvalue().splitlines()
    assert 20 <= len(lines) <= 30
    assert lines[0].startswith("step 1/1000  loss 2.500  0 tokens/s")
    assert lines[-1].startswith("step 1000/1000")
    assert "\x1b" not in file.getvalue()


def test_a_pipe_is_told_once_what_is_being_prepared():
    display, file = make_display(terminal=False)
    with display.preparing() as report:
        for done in range(3):
            report("tokenising train", done, 2_000_000)
    assert file.getvalue() == "tokenising train (2.0 MB)\n"


def test_a_terminal_gets_a_bar_with_step_loss_speed_and_time_left():
    display, file = make_display(terminal=True)
    with display.preparing() as report:
        report("reading", 1_000_000, None)
        report("tokenising train", 1_000_000, 2_000_000)
    with display.training(5, 20):
        display.step(6, 2.5, Pace(100))
    shown = file.getvalue()
    assert "6/20" in shown
    assert "loss 2.500" in shown
    assert "tokens/s" in shown
    assert "0:00 left" in shown


def test_texts_are_shown_as_they_are():
    display, file = make_display(terminal=False)
    display.sample(3, "a [bold]b[/] :smile: " + "x" * 200 + "\nnext")
    assert file.getvalue() == (
        "step 3 writes:\n  | a [bold]b[/] :smile: " + "x" * 200 + "\n  | next\n"
    )


def test_an_empty_sample_is_said_to_be_empty():
    display, file = make_display(terminal=False)
    display.sample(3, "")
    assert file.getvalue() == "step 3 writes nothing\n"


def test_a_sample_cannot_command_the_terminal():
    display, file = make_display(terminal=True)
    display.sample(3, "a\x1b[2Jb")
    assert "  | a\ufffd[2Jb" in file.getvalue()


def test_a_slow_run_in_a_pipe_is_not_silent_for_long(monkeypatch):
    display, file = make_display(terminal=False)
    now = [0.0]
    monkeypatch.setattr("retnet.train.display.time.monotonic", lambda: now[0])
    with display.training(0, 100_000):
        for step in range(1, 11):
            now[0] += 30
            display.step(step, 2.5, Pace(100))
    assert [line.split("/")[0] for line in file.getvalue().splitlines()] == [
        f"step {step}" for step in (1, 3, 5, 7, 9)
    ]


def test_a_share_of_the_peak_is_shown_where_the_peak_is_known():
    display, file = make_display(terminal=False)
    clock = Clock()
    pace = Pace(600, clock, peak_tokens_per_s=1000.0)
    pace.begin_step()
    clock.now += 1.5
    pace.end_step()
    assert pace.share_of_peak(pace.tokens_per_s) == pytest.approx(0.4)
    assert Pace(600, clock).share_of_peak(400.0) is None
    with display.training(0, 10):
        display.step(1, 2.5, pace)
    assert file.getvalue() == "step 1/10  loss 2.500  400 tokens/s  40% of peak  0:14 left\n"


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch, term):
    """It got a bar, of which such a terminal shows nothing until the end."""
    monkeypatch.setenv("TERM", term)
    display, file = make_display(terminal=True)
    with display.preparing() as report:
        report("reading", 1_000_000, None)
    with display.training(0, 4):
        for step in range(1, 5):
            display.step(step, 2.5, Pace(100))
    lines = file.getvalue().splitlines()
    assert lines[0] == "reading"
    assert [line.split("  ")[0] for line in lines[1:]] == [f"step {i}/4" for i in range(1, 5)]
    assert "\x1b" not in file.getvalue()


def test_a_silent_display_shows_nothing_even_on_a_terminal(monkeypatch, capfd):
    monkeypatch.setenv("FORCE_COLOR", "1")
    display = Display.silent()
    with display.preparing() as report:
        report("reading", 1_000_000, None)
    with display.training(0, 2):
        display.step(1, 2.5, Pace(100))
        display.note("a note")
        display.sample(1, "text")
        sys.stdout.write("others may still speak\n")
    assert capfd.readouterr() == ("others may still speak\n", "")
