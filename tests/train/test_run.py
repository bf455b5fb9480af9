import math
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import forks
import retnet
from retnet.hub import dump_toml
from retnet.train import feed, loop, read_metrics, run, saving, train
from retnet.train.folder import RunFolder

TIMING = ("seconds", "tokens_per_s", "mfu")


class Killed(BaseException):
    """Stands for whatever ends a process."""


def lines(folder: Path):
    """The log without what a clock decides."""
    return [
        {key: value for key, value in line.items() if key not in TIMING}
        for line in read_metrics(folder / "metrics.jsonl")
    ]


def assert_same_run(a: Path, b: Path):
    assert lines(a) == lines(b)
    ours, theirs = (resume_tensors(folder) for folder in (a, b))
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert torch.equal(tensor, theirs[key]), key
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()


def resume_tensors(folder: Path):
    """All that the newest step holds besides the weights."""
    (file,) = (RunFolder(folder).steps()[0] / "state").iterdir()
    return load_file(file)


@pytest.fixture
def picture():
    """Asked for by the tests that want one: most save the second that matplotlib takes."""


@pytest.fixture(autouse=True)
def _no_picture(request, monkeypatch):
    if "picture" not in request.fixturenames:
        monkeypatch.setattr(run, "plot_metrics", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_config_in):
    """The folder of a run that nothing disturbs; each is made once, for all tests."""
    base = tmp_path_factory.mktemp("whole")
    make, made = make_config_in(base), {}

    def undisturbed(**settings):
        config = make(**settings)
        if config not in made:
            name = f"run-{len(made)}"
            made[config] = train(make(dir=name, **settings), base=base).folder
        return made[config]

    return undisturbed


@pytest.fixture
def before_step(monkeypatch):
    """Call a function before the batch of a step is made, once."""

    def install(step, action):
        real, armed = feed.training_batch, [True]

        def wrapped(*args, **kwargs):
            if kwargs["step"] == step and armed:
                armed.clear()
                action()
            return real(*args, **kwargs)

        monkeypatch.setattr(feed, "training_batch", wrapped)

    return install


def kill():
    raise Killed


@pytest.mark.usefixtures("picture")
def test_a_run_learns_and_leaves_a_folder_that_every_command_reads(make_config, tmp_path):
    result = train(make_config(steps=30, learning_rate=0.03), base=tmp_path)
    assert result.finished
    assert result.folder == tmp_path / "run"
    log = read_metrics(result.folder / "metrics.jsonl")
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < losses[0] - 0.5
    scored = [line for line in log if "valid_loss" in line]
    assert [line["step"] for line in scored] == [6, 12, 18, 24, 30]
    assert scored[-1]["valid_bits_per_byte"] < scored[0]["valid_bits_per_byte"]
    assert (
        result.metrics["valid_bits_per_byte_carried"] == scored[-1]["valid_bits_per_byte_carried"]
    )
    assert result.metrics["tokens"] == 30 * 4 * 24
    assert {p.name for p in result.folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "loss.png",
        "metrics.jsonl",
        "model.safetensors",
        "run.toml",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer",
    }
    model, tokenizer = retnet.load(result.folder)
    assert model.config.vocab_size == tokenizer.vocab_size == 257


def test_the_log_has_a_line_for_the_first_step_then_for_each_period_and_the_last(
    make_config, tmp_path
):
    folder = train(make_config(), base=tmp_path).folder
    log = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in log if "loss" in line] == [1, 5, 10, 12]
    assert [line["step"] for line in log if "sample" in line] == [8, 12]
    assert [line["step"] for line in log if "valid_loss" in line] == [6, 12]
    assert all(line["tokens"] == line["step"] * 96 for line in log)


def test_random_numbers_of_the_caller_are_left_alone(make_config, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(make_config(steps=2, dropout=0.5), base=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_killed_again_and_again_goes_on_bit_for_bit(
    make_config, tmp_path, before_step, whole, accumulate
):
    """Dropout, means of the log across a gap, validation and samples included."""
    settings = {"dropout": 0.2, "accumulate": accumulate}
    for step in (1, 4, 7, 11):  # before anything is saved, right after a save, later
        before_step(step, kill)
        with pytest.raises(Killed):
            train(make_config(dir="cut", **settings), base=tmp_path)
    train(make_config(dir="cut", **settings), base=tmp_path)
    assert_same_run(whole(**settings), tmp_path / "cut")


@pytest.mark.parametrize(
    ("module", "broken"), [(loop, "save_learned"), (loop, "dump_toml"), (saving, "async_save")]
)
def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(
    make_config, tmp_path, monkeypatch, whole, module, broken
):
    real, calls = getattr(module, broken), []

    def fail_at_second(*args, **kwargs):
        calls.append(1)
        result = real(*args, **kwargs)
        if len(calls) == 2:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, broken, fail_at_second)
        with pytest.raises(Killed):
            train(make_config(dir="cut"), base=tmp_path)
    assert RunFolder(tmp_path / "cut").steps() == [tmp_path / "cut/trainer/step-4"]
    train(make_config(dir="cut"), base=tmp_path)
    assert_same_run(whole(), tmp_path / "cut")


@pytest.mark.parametrize("full", [OSError(28, "No space left on device"), "library"])
def test_a_full_disk_ends_the_run_and_keeps_the_step_before(
    make_config, tmp_path, monkeypatch, whole, full
):
    real, calls = loop.save_learned, []

    def fill_up(*args):
        calls.append(1)
        if len(calls) == 2:
            raise (
                full
                if isinstance(full, OSError)
                else SafetensorError("I/O error: No space left on device (os error 28)")
            )
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_learned", fill_up)
        message = r"checkpoint of step 8 cannot be written .*No space left.*step-4 is kept: make"
        with pytest.raises(ValueError, match=message):
            train(make_config(dir="cut"), base=tmp_path)
    assert not (tmp_path / "cut/trainer/.saving").exists()
    train(make_config(dir="cut"), base=tmp_path)
    assert_same_run(whole(), tmp_path / "cut")


def test_a_damaged_checkpoint_is_put_aside_and_the_one_before_it_serves(
    make_config, tmp_path, before_step, whole, capsys
):
    before_step(9, kill)
    with pytest.raises(Killed):
        train(make_config(dir="cut"), base=tmp_path)
    (shard,) = (tmp_path / "cut/trainer/step-8/state").iterdir()
    shard.write_bytes(shard.read_bytes()[:-8])
    train(make_config(dir="cut"), base=tmp_path)
    out = capsys.readouterr().out
    assert "step-8 is damaged" in out
    assert "going on from step 4" in out
    assert_same_run(whole(), tmp_path / "cut")


SCRIPT = """
import os, signal, sys
from pathlib import Path
from retnet.train import folder, load_config, loop, train
point, base = sys.argv[1], Path(sys.argv[2])
if point != "never":
    module, name = {"writing": (loop, "save_learned"), "publishing": (folder.os, "link")}[point]
    real, calls = getattr(module, name), []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(module, name, wrapped)
train(load_config(base / "run.toml"), base=base)
"""


def test_processes_killed_by_sigkill_are_followed_by_one_that_goes_on_bit_for_bit(
    make_config, tmp_path, whole
):
    config = make_config(dir="cut", save_every=2)
    (tmp_path / "run.toml").write_text(dump_toml(config), encoding="utf-8")
    command = [sys.executable, "-c", SCRIPT]
    for point, code in (("publishing", -9), ("writing", -9), ("never", 0)):
        done = forks.run([*command, point, tmp_path], capture_output=True)
        assert done.returncode == code, (point, done.stderr.decode())
    assert b"going on from step" in done.stdout
    assert_same_run(whole(save_every=2), tmp_path / "cut")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves_and_the_same_command_goes_on(
    make_config, tmp_path, before_step, whole, capfd, number
):
    before = signal.getsignal(number)
    before_step(6, lambda: os.kill(os.getpid(), number))
    result = train(make_config(dir="cut"), base=tmp_path)
    assert (result.finished, result.step) == (False, 7)
    assert signal.getsignal(number) is before
    out, err = capfd.readouterr()
    assert f"{signal.Signals(number).name}: saving after this step" in err
    assert "stopped after step 7" in out
    assert "the same command goes on from there" in out
    assert train(make_config(dir="cut"), base=tmp_path).finished
    assert_same_run(whole(), tmp_path / "cut")


@pytest.mark.parametrize("log_every", [5, 6])
def test_a_signal_cuts_a_validation_short_which_is_made_up_for(
    make_config, tmp_path, monkeypatch, whole, log_every
):
    """Also where the report had begun with a line of the log."""
    real = loop.Validation.score

    def interrupted(self, model, wrap=iter):
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, model, wrap)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Validation, "score", interrupted)
        result = train(make_config(dir="cut", log_every=log_every), base=tmp_path)
    assert (result.finished, result.step) == (False, 6)
    assert "valid_loss" not in result.metrics
    train(make_config(dir="cut", log_every=log_every), base=tmp_path)
    assert_same_run(whole(log_every=log_every), tmp_path / "cut")


def test_reports_do_not_change_what_is_learned(make_config, tmp_path):
    quiet = make_config(dir="quiet", dropout=0.2, eval_every=0, sample_every=0, save_every=0)
    train(quiet, base=tmp_path)
    train(make_config(dir="busy", dropout=0.2, eval_every=1, sample_every=1), base=tmp_path)
    quiet_model, busy_model = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("quiet", "busy")
    )
    assert quiet_model == busy_model


def test_a_complete_run_is_left_alone_until_it_gets_more_steps(make_config, tmp_path, capsys):
    settings = {"schedule": "constant", "dropout": 0.2}
    train(make_config(dir="short", steps=7, **settings), base=tmp_path)
    stamp = (tmp_path / "short/trainer/step-7").stat().st_mtime_ns
    again = train(make_config(dir="short", steps=7, **settings), base=tmp_path)
    assert again.finished
    assert "valid_loss" in again.metrics
    assert (tmp_path / "short/trainer/step-7").stat().st_mtime_ns == stamp
    assert "is complete with 7 steps; raise train.steps (7) to go on" in capsys.readouterr().out
    train(make_config(dir="short", steps=12, **settings), base=tmp_path)
    train(make_config(dir="long", steps=12, **settings), base=tmp_path)
    assert_same_run(tmp_path / "short", tmp_path / "long")


def test_a_complete_run_that_was_killed_before_it_was_published_is_published(
    make_config, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "publish", lambda *_: kill())
        with pytest.raises(Killed):
            train(make_config(save_every=0), base=tmp_path)
    assert not (tmp_path / "run/model.safetensors").exists()
    assert train(make_config(save_every=0), base=tmp_path).finished
    retnet.load(tmp_path / "run")


def test_a_changed_setting_is_refused_and_nothing_is_touched(make_config, tmp_path):
    folder = train(make_config(steps=2), base=tmp_path).folder
    before = (folder / "run.toml").read_text()
    with pytest.raises(
        ValueError, match=r"train\.seq_len \(32\) must stay 24, with which this run"
    ):
        train(make_config(steps=4, seq_len=32), base=tmp_path)
    assert (folder / "run.toml").read_text() == before


def test_changed_text_is_refused(make_config, tmp_path):
    train(make_config(steps=2), base=tmp_path)
    (tmp_path / "train.txt").write_text("other words\n" * 50)
    with pytest.raises(
        ValueError, match=r"data\.train .* the files have changed since; bring them"
    ):
        train(make_config(steps=4), base=tmp_path)


def test_training_that_diverges_stops_before_the_weights_are_touched(
    make_config, tmp_path, monkeypatch
):
    real, calls = loop.score, []

    def broken_at_the_sixth(*args, **kwargs):
        calls.append(1)
        got = real(*args, **kwargs)
        return got._replace(nats=got.nats * (math.nan if len(calls) == 6 else 1))

    monkeypatch.setattr(loop, "score", broken_at_the_sixth)
    message = (
        r"loss \(nan\) and gradient norm \(nan\) of step 6 must be finite numbers: training "
        r"diverged; the checkpoint of step 4 is kept\. Start a new run .* train\.learning_rate"
    )
    with pytest.raises(ValueError, match=message):
        train(make_config(), base=tmp_path)
    folder = tmp_path / "run"
    assert [line["step"] for line in lines(folder) if "loss" in line] == [1, 5]
    model, _ = retnet.load(folder)
    assert all(p.isfinite().all() for p in model.parameters())


def test_bfloat16_runs_and_keeps_float32_weights(make_config, tmp_path):
    result = train(make_config(steps=20, precision="bfloat16", learning_rate=0.03), base=tmp_path)
    losses = [m["loss"] for m in read_metrics(result.folder / "metrics.jsonl") if "loss" in m]
    assert losses[-1] < losses[0] - 0.3
    weights = load_file(result.folder / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {torch.float32}


def test_windows_longer_than_the_text_are_refused(make_config, tmp_path):
    with pytest.raises(ValueError, match=r"seq_len \(100000\) must be below the number of tokens"):
        train(make_config(seq_len=100_000), base=tmp_path)


@pytest.mark.usefixtures("picture")
def test_without_matplotlib_a_run_says_what_to_install(make_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert train(make_config(steps=2), base=tmp_path).finished
    assert "pip install 'retnet[plot]'" in capsys.readouterr().out


def test_tensorboard_shows_each_step_of_an_interrupted_run_once(make_config, tmp_path, before_step):
    config = make_config(log_to=("tensorboard",), log_every=1)
    before_step(7, kill)
    with pytest.raises(Killed):
        train(config, base=tmp_path)
    folder = train(config, base=tmp_path).folder
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    logged = [m for m in read_metrics(folder / "metrics.jsonl") if "loss" in m]
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(m["step"], pytest.approx(m["loss"])) for m in logged]
    assert [step for step, _ in shown] == list(range(1, 13))


def test_a_missing_log_package_is_refused_before_anything_is_read(
    make_config, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "retnet.train.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'retnet\[log\]'"):
        train(make_config(log_to=("tensorboard",)), base=tmp_path)
    assert not (tmp_path / ".tokens").exists()


def test_the_log_knows_the_share_of_the_machines_peak(make_config, tmp_path):
    log = read_metrics(train(make_config(), base=tmp_path).folder / "metrics.jsonl")
    shares = [line["mfu"] for line in log if "mfu" in line]
    assert len(shares) == 4
    assert all(0 < share < 2 for share in shares)
