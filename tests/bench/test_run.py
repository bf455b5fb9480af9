"""Every bench at toy sizes; without torchscale, so that they need nothing that tests lack."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from retnet.bench import BENCHES, op, run_bench, show_bench, train_step, trainees
from retnet.bench.cases import QUICK_TRAINS
from retnet.bench.gates import OpInputs
from retnet.bench.peak_memory import Peak, peak_of
from retnet.bench.peers import PeerMissing
from retnet.bench.record import Gate, read_records
from retnet.hub import save_checkpoint
from retnet.model import Decoder, DecoderConfig
from retnet.ops import retention

INSTALL = "pip install a-peer"


def absent(*_args: Any, **_settings: Any) -> NoReturn:
    raise PeerMissing("torchscale", "is not installed", INSTALL)


def our_op(log_decay: Tensor, **_settings: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: retention(q, k, v, log_decay)[0].unflatten(1, (3, -1))


class OurDecoder(nn.Module):
    """Stands in for torchscale's: tokens to logits."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.decoder = Decoder(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(tokens)[0]


def our_decoder(**_settings: Any) -> nn.Module:
    return OurDecoder(QUICK_TRAINS["quick-float32"].size.config())


@pytest.fixture
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "torchscale_retention", absent)
    monkeypatch.setattr(train_step, "torchscale_version", absent)
    monkeypatch.setattr(trainees, "torchscale_decoder", absent)
    monkeypatch.setattr(train_step, "peak_of", lambda *_: Peak(100.0, 150.0))


@pytest.fixture
def _with_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "torchscale_retention", our_op)
    monkeypatch.setattr(trainees, "torchscale_decoder", our_decoder)
    monkeypatch.setattr(train_step, "peak_of", lambda *_: Peak(100.0, 150.0))
    for module in (op, train_step):
        monkeypatch.setattr(module, "torchscale_version", lambda: "0.0.0")


@pytest.mark.usefixtures("_alone")
@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_runs_and_records_what_it_shows(name: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    result = run_bench(name, out=tmp_path, quick=True, progress=lambda *step: told.append(step))
    assert result.failed == []
    assert result.table.rows
    assert all(record.quick for record in result.records)
    assert sorted(map(repr, read_records(tmp_path))) == sorted(map(repr, result.records))
    assert [done for _, done, _ in told] == list(range(len(told)))
    assert {total for _, _, total in told} == {len(told) - 1}
    missing = PeerMissing("torchscale", "is not installed", INSTALL)
    assert result.skipped == ([str(missing)] if name in ("ops", "train") else [])


@pytest.mark.usefixtures("_with_peer")
@pytest.mark.parametrize("name", ["ops", "train"])
def test_a_peer_stands_beside_ours_with_its_ratio(name: str, tmp_path: Path) -> None:
    result = run_bench(name, out=tmp_path, quick=True)
    assert result.skipped == result.failed == []
    ours = [r for r in result.records if r.case.get("by") == "retnet"]
    theirs = [r for r in result.records if r.case.get("by") == "torchscale 0.0.0"]
    assert ours
    assert theirs
    over = {r.metric for r in theirs} - {r.metric for r in ours}
    assert over
    assert all(metric.endswith("time_over_retnet") for metric in over)


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
def test_decoders_of_other_sizes_are_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainees, "torchscale_decoder", lambda **_: nn.Linear(1, 1))
    monkeypatch.setattr(train_step, "_gate", lambda *_: Gate(True, ""))
    result = run_bench("train", out=tmp_path, quick=True)
    assert len(result.failed) == 2
    assert "the decoders differ in size" in result.failed[0]
    assert result.records == []


@pytest.mark.parametrize("name", ["forms", "decode"])
def test_a_checkpoint_can_be_measured(name: str, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "mine", Decoder(QUICK_TRAINS["quick-float32"].size.config()))
    result = run_bench(name, out=tmp_path / "out", quick=True, checkpoint=tmp_path / "mine")
    assert {record.case["model"] for record in result.records} == {"mine"}


def test_unknown_benches_and_useless_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no bench "op"; choose one of ops, train, forms, decode'):
        run_bench("op", out=tmp_path)
    with pytest.raises(ValueError, match="bench ops measures fixed cases and takes no checkpoint"):
        run_bench("ops", out=tmp_path, checkpoint=tmp_path)


@pytest.mark.usefixtures("_alone")
def test_the_shown_bench_prints_its_table_and_what_is_missing(tmp_path: Path) -> None:
    text = io.StringIO()
    show_bench("ops", out=tmp_path, quick=True, console=Console(file=text, width=120))
    assert "Retention alone" in text.getvalue()
    assert INSTALL in text.getvalue()


def test_peak_memory_is_measured_in_a_process_of_its_own() -> None:
    peak = peak_of("retnet", QUICK_TRAINS["quick-float32"])
    assert 0 < peak.start_mib < peak.peak_mib
