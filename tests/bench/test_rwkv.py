"""The bench of RWKV-4 at toy sizes, with other people's parts played by our own decoder."""

from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from retnet.bench import run_bench
from retnet.bench import rwkv as bench
from retnet.bench.cases import QUICK_RWKVS, RWKVS
from retnet.bench.ours import Texts, prefiller_of, speaker_of, trainee_of
from retnet.bench.peers import PeerMissing, rwkv
from retnet.model import Decoder
from retnet.model.steps import pack

PEER = "peer 0.0.0"


def absent(*_args: Any) -> NoReturn:
    raise PeerMissing("peer", "is not installed", "pip install a-peer")


def speaker(model: Decoder) -> Any:
    return speaker_of(model.eval(), Texts(pack(model, "float32")), "float32", PEER)


@pytest.fixture
def _played(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rwkv, "trainee", lambda model: trainee_of(model, PEER))
    monkeypatch.setattr(rwkv, "prefiller", lambda model, _: prefiller_of(model.eval(), PEER))
    monkeypatch.setattr(rwkv, "pip_speaker", speaker)
    monkeypatch.setattr(rwkv, "transformers_speaker", speaker)


@pytest.mark.usefixtures("_played")
def test_every_activity_is_recorded_beside_others(tmp_path: Path) -> None:
    result = run_bench("rwkv", out=tmp_path, quick=True)
    assert result.failed == []
    benches = {record.bench for record in result.records}
    assert benches == {"rwkv/train", "rwkv/prefill", "rwkv/decode"}
    over = {r.metric for r in result.records if r.case["by"] == PEER and "over" in r.metric}
    kinds = {f"time_over_retnet_{kind}" for kind in ("float32", "bfloat16", "int8")}
    assert over == {"time_over_retnet", *kinds}
    [table] = result.tables
    assert len(table.rows) == 2 + 2 + 7 + 6  # both speakers have one name here


def test_without_others_ours_is_measured_alone_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("trainee", "prefiller", "pip_speaker", "transformers_speaker"):
        monkeypatch.setattr(rwkv, name, absent)
    result = run_bench("rwkv", out=tmp_path, quick=True)
    assert result.failed == []
    ours = {record.case["by"] for record in result.records}
    assert ours == {"retnet", "retnet without Numba"}
    assert len(result.skipped) == 1


def test_another_answer_from_the_same_weights_is_no_rival() -> None:
    logits = torch.randn(5)
    assert bench.gate_agree(PEER, logits + 1e-6, logits).passed
    assert not bench.gate_agree(PEER, logits + 0.01, logits).passed


def test_the_large_cases_are_the_smallest_release() -> None:
    [size] = {RWKVS[name].config() for name in RWKVS if "169m" in name}
    with torch.device("meta"):
        assert Decoder(size).num_parameters() == 169_342_464
    assert all(case.T < 100 for case in QUICK_RWKVS.values())


def test_transformers_computes_the_same_from_the_same_weights() -> None:
    """In float32; needs transformers: pip install 'retnet[hf]'."""
    pytest.importorskip("transformers", reason="pip install 'retnet[hf]' brings it")
    model = bench.decoder(QUICK_RWKVS["prefill"]).eval()
    tokens = torch.randint(64, (1, 20))
    theirs = rwkv.prefiller(model, torch.float32).read(tokens)
    assert bench.gate_agree("transformers", theirs, prefiller_of(model).read(tokens)).passed
