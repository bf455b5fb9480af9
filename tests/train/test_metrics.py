from pathlib import Path

import pytest

from retnet.train import read_metrics
from retnet.train.metrics import MetricsLog


def write(path, steps):
    log = MetricsLog(path, before_step=steps[0])
    for step in steps:
        log.append({"step": step, "loss": step / 3})
    log.sync()
    log.close()


def test_lines_read_back_bit_for_bit(tmp_path):
    write(tmp_path / "m.jsonl", [1, 2])
    assert read_metrics(tmp_path / "m.jsonl") == [
        {"step": 1, "loss": 1 / 3},
        {"step": 2, "loss": 2 / 3},
    ]


def test_a_log_that_goes_on_forgets_what_will_be_written_again(tmp_path):
    write(tmp_path / "m.jsonl", [1, 2, 3, 4])
    write(tmp_path / "m.jsonl", [3, 4, 5])
    assert [m["step"] for m in read_metrics(tmp_path / "m.jsonl")] == [1, 2, 3, 4, 5]


def test_a_line_cut_short_by_a_crash_is_forgotten(tmp_path):
    write(tmp_path / "m.jsonl", [1, 2])
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert [m["step"] for m in read_metrics(tmp_path / "m.jsonl")] == [1, 2]
    write(tmp_path / "m.jsonl", [3])
    assert [m["step"] for m in read_metrics(tmp_path / "m.jsonl")] == [1, 2, 3]


def test_no_file_is_no_metrics(tmp_path):
    assert read_metrics(tmp_path / "m.jsonl") == []


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": 1}'])
def test_a_broken_line_is_named(tmp_path, line):
    (tmp_path / "m.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl, line 2 .* must be a JSON object with a step"):
        read_metrics(tmp_path / "m.jsonl")


class Sink:
    def __init__(self, folder, past):
        self.folder, self.lines, self.closed = folder, list(past), False

    def append(self, metrics):
        self.lines.append(metrics)

    def close(self):
        self.closed = True


def test_a_sink_is_given_what_the_file_holds_from_the_first_line_on(tmp_path):
    write(tmp_path / "m.jsonl", [1, 2, 3, 4])
    opened = []

    def open_sink(folder, past):
        opened.append(Sink(folder, past))
        return opened[0]

    log = MetricsLog(tmp_path / "m.jsonl", before_step=3, sinks=[open_sink])
    log.append({"step": 3, "loss": 0.5})
    log.close()
    assert opened[0].folder == tmp_path
    assert opened[0].lines == read_metrics(tmp_path / "m.jsonl")
    assert opened[0].closed


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_said_to_be_full(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl", before_step=1)
    log._file.close()
    log._file = Path("/dev/full").open("a")  # noqa: SIM115
    with pytest.raises(ValueError, match=r"m\.jsonl cannot be written .*No space.* make room"):
        log.append({"step": 1, "loss": 0.5})
    log.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none/m\.jsonl cannot be written .*make room or mend"):
        MetricsLog(tmp_path / "none" / "m.jsonl", before_step=1)
