"""Every bench at toy sizes; without other people's code, so that they need nothing tests lack."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from rich.console import Console
from torch import Tensor

import forks
from retnet.bench import (
    BENCHES,
    document,
    kills,
    op,
    peak_memory,
    prefill,
    prefillers,
    run,
    run_bench,
    show_bench,
    speakers,
    train_step,
    trainees,
)
from retnet.bench.cases import DECODES, OPS, PREFILLS, QUICK_PREFILLS, QUICK_TRAINS, READS, TRAINS
from retnet.bench.decode import rooms
from retnet.bench.gates import OpInputs
from retnet.bench.gpu import GPU_BENCHES
from retnet.bench.ours import Texts, fresh, prefiller_of, speaker_of, trainee_of
from retnet.bench.peak_memory import Apart, apart
from retnet.bench.peers import PeerMissing, torchscale
from retnet.bench.record import Gate, read_records
from retnet.bench.run import IN_SUITE, SUITE
from retnet.bench.serving import beside, process
from retnet.bench.session import Session
from retnet.bench.sizes import SMALL, TINY
from retnet.bench.timing import Spread
from retnet.bench.train_plot import plot_train
from retnet.hub import save_checkpoint
from retnet.model import Decoder
from retnet.ops import retention

INSTALL = "pip install a-peer"
PEER = "torchscale 0.0.0"
WITH_PEERS = ("ops", "train", "prefill", "decode")


def absent(*_args: Any, **_settings: Any) -> NoReturn:
    raise PeerMissing("torchscale", "is not installed", INSTALL)


def our_op(log_decay: Tensor, **_settings: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: retention(q, k, v, log_decay)[0].unflatten(1, (3, -1))


def alone_in_no_process(_who: str, _case: Any, calls: int = 1) -> Apart:
    return Apart(100.0, 150.0, calls * [1.0], True)


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchscale, "chunkwise_retention", absent)
    rivals = (trainees.BUILDERS, prefillers.BUILDERS, speakers.RIVALS, beside.RIVALS)
    for builders in rivals:
        for name in builders:
            if name != "retnet":
                monkeypatch.setitem(builders, name, absent)
    for module in (train_step, prefill):
        monkeypatch.setattr(module, "apart", alone_in_no_process)


@pytest.fixture
def _forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the benches are forks, which begin in a moment."""
    for module in (document, kills, peak_memory, process):
        monkeypatch.setattr(module, "subprocess", forks)


@pytest.fixture
def _with_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All peers' parts are played by our own decoder."""
    config = TINY.config()
    monkeypatch.setattr(torchscale, "chunkwise_retention", our_op)
    monkeypatch.setattr(torchscale, "version", lambda: "0.0.0")
    for name in set(trainees.BUILDERS) - {"retnet"}:
        monkeypatch.setitem(trainees.BUILDERS, name, lambda _: trainee_of(fresh(config), PEER))
    for name in set(prefillers.BUILDERS) - {"retnet"}:
        monkeypatch.setitem(
            prefillers.BUILDERS, name, lambda *_: prefiller_of(fresh(config).eval(), PEER)
        )
    for name in speakers.RIVALS:
        model = fresh(config).eval()
        monkeypatch.setitem(
            speakers.RIVALS,
            name,
            lambda *_, model=model: speaker_of(model, Texts(model), "float32", PEER),
        )
    for module in (train_step, prefill):
        monkeypatch.setattr(module, "apart", alone_in_no_process)


@pytest.mark.usefixtures("_alone", "_forked")
@pytest.mark.parametrize("name", sorted({*BENCHES} - {SUITE, *GPU_BENCHES}))
def test_every_bench_runs_and_records_what_it_shows(name: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = run_bench(name, out=tmp_path, quick=True, progress=lambda *step: told.append(step))
    assert result.failed == []
    assert all(table.rows for table in result.tables)
    assert all(record.quick for record in result.records)
    assert sorted(map(repr, read_records(tmp_path))) == sorted(map(repr, result.records))
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for _, _, total in told} == {len(told) - 1}
    missing = PeerMissing("torchscale", "is not installed", INSTALL)
    peers = (*WITH_PEERS, "beside")
    skipped = [why for why in result.skipped if not why.startswith("rwkv is not installed")]
    assert skipped == ([str(missing)] if name in peers else [])


def test_the_suite_is_its_benches_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for benches in (run.OF_CASES, run.OF_A_CHECKPOINT):
        for name in set(benches) & set(IN_SUITE):
            monkeypatch.setitem(benches, name, lambda *_, name=name: ran.append(name))
    result = run_bench(SUITE, out=tmp_path, quick=True)
    assert ran == list(IN_SUITE)
    assert result.failed == []


def test_a_bench_that_breaks_does_not_take_the_suite_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> NoReturn:
        raise RuntimeError("no room for 8 rows")

    def draws(session: Session, *_: object) -> None:
        machine_s = {"seconds": Spread.of([1.0])}
        session.recorder.add("machine", {}, machine_s, Gate(True, "none needed"))
        session.draw("train.png", plot_train)

    for name in ("ops", "prefill"):
        monkeypatch.setitem(run.OF_CASES, name, breaks)
    monkeypatch.setitem(run.OF_CASES, "train", draws)
    monkeypatch.setitem(run.OF_A_CHECKPOINT, "decode", draws)
    result = run_bench(SUITE, out=tmp_path, quick=True)
    assert result.failed == [f"{n}: RuntimeError: no room for 8 rows" for n in ("ops", "prefill")]
    assert len(result.records) == 2
    assert result.skipped[0].startswith("no picture: no train/step records to draw train.png from")
    with pytest.raises(RuntimeError, match="no room"):
        run_bench("ops", out=tmp_path, quick=True)


@pytest.mark.parametrize("cases", [OPS, TRAINS, PREFILLS, READS, DECODES])
def test_the_suite_leaves_out_cases_and_never_all(cases: dict, tmp_path: Path) -> None:
    chosen = Session(tmp_path, quick=False, suite=True).choose(cases, {})
    assert chosen
    assert chosen == {name: case for name, case in cases.items() if case.suite}
    assert Session(tmp_path, quick=False).choose(cases, {}) == cases


@pytest.mark.usefixtures("_with_peer")
@pytest.mark.parametrize("name", WITH_PEERS)
def test_a_peer_stands_beside_ours_with_its_ratio(name: str, tmp_path: Path) -> None:
    result = run_bench(name, out=tmp_path, quick=True)
    assert result.skipped == result.failed == []
    ours = [r for r in result.records if r.case.get("by") == "retnet"]
    theirs = [r for r in result.records if r.case.get("by") == PEER]
    assert ours
    assert theirs
    over = {r.metric for r in theirs if r.metric.endswith("time_over_retnet")}
    assert over


@pytest.mark.usefixtures("_alone")
def test_a_wrong_form_is_reported_and_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gate(inputs: OpInputs) -> Gate:
        return Gate(inputs.q.dtype != torch.bfloat16, "o errs by 1.00e+00")

    monkeypatch.setattr(op, "gate_op", gate)
    result = run_bench("ops", out=tmp_path, quick=True)
    assert result.failed == ["op quick-bfloat16: o errs by 1.00e+00"]
    dtypes = {record.case.get("dtype") for record in read_records(tmp_path / "op")}
    assert dtypes == {"float32"}


@pytest.mark.usefixtures("_with_peer")
def test_a_rival_makes_room_for_its_own_cases_alone() -> None:
    found = rooms([case for case in DECODES.values() if case.size == SMALL])
    assert found["llama.cpp"] == (8192, 8)
    assert found["attention float32"] == (32_768, 8)


@pytest.mark.parametrize("name", ["train", "prefill", "decode"])
def test_decoders_of_other_sizes_are_not_compared(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fresh(SMALL.config()).eval()
    monkeypatch.setitem(trainees.BUILDERS, "torchscale", lambda _: trainee_of(model, PEER))
    monkeypatch.setitem(prefillers.BUILDERS, "llama.cpp", lambda *_: prefiller_of(model, PEER))
    rival = speaker_of(model, Texts(model), "float32", PEER)
    monkeypatch.setitem(speakers.RIVALS, "llama.cpp", lambda *_: rival)
    result = run_bench(name, out=tmp_path, quick=True)
    assert result.failed
    assert "parameters differ by more than 1 % from our" in result.failed[0]
    assert PEER not in {record.case.get("by") for record in result.records}


@pytest.mark.parametrize("name", ["forms", "decode"])
def test_a_checkpoint_can_be_measured(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "mine", Decoder(TINY.config()))
    result = run_bench(name, out=tmp_path / "out", quick=True, checkpoint=tmp_path / "mine")
    assert {record.case["model"] for record in result.records} == {"mine"}


def test_unknown_benches_and_useless_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match='no bench "op"; choose one of cpu, ops, scan, rwkv, train'
    ):
        run_bench("op", out=tmp_path)
    with pytest.raises(ValueError, match=r"minutes \(1\) must be positive"):
        run_bench("ops", out=tmp_path, minutes=1.0)
    with pytest.raises(ValueError, match="bench ops measures fixed cases and takes no checkpoint"):
        run_bench("ops", out=tmp_path, checkpoint=tmp_path)


@pytest.mark.usefixtures("_alone")
def test_the_shown_bench_prints_its_table_and_what_is_missing(tmp_path: Path) -> None:
    text = io.StringIO()
    show_bench("ops", out=tmp_path, quick=True, console=Console(file=text, width=120))
    assert "Retention alone" in text.getvalue()
    assert INSTALL in text.getvalue()


@pytest.mark.parametrize(
    "case", [QUICK_TRAINS["tiny, float32"], QUICK_PREFILLS["tiny"]], ids=["train", "prefill"]
)
def test_peak_memory_is_measured_in_a_process_of_its_own(case: Any) -> None:
    alone = apart("retnet", case, calls=2)
    assert 0 < alone.start_mib < alone.peak_mib
    assert len(alone.seconds) == 2
    assert alone.finite


@pytest.mark.usefixtures("_forked")
def test_a_process_that_fails_is_reported_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step, "TRAINS", {})
    case = replace(QUICK_TRAINS["tiny, bfloat16"], B=-1)
    monkeypatch.setattr(train_step, "QUICK_TRAINS", {"broken": case})
    result = run_bench("train", out=tmp_path, quick=True)
    assert result.records == []
    assert "ended with status 1" in result.failed[0]
    assert "Traceback" in capfd.readouterr().err
