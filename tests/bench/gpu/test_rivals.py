"""Rivals' interfaces, with a stand-in for flash-linear-attention, which runs on GPUs only."""

import importlib.metadata
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from bench.gpu.benches import CPU
from retnet.bench.gpu.cases import OpCase
from retnet.bench.gpu.gates import draw_inputs, ours
from retnet.bench.gpu.rivals import attention_rival, fla_retention
from retnet.bench.peers import PeerMissing
from retnet.mixers.retention import log_decays
from retnet.ops import retention

CUDA = torch.device("cuda", 0)
CASE = OpCase(D_k=16, D_v=32, T=20, B=2, H=3)


def chunk_retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What version 0.6.0 computes, by its own signature."""
    assert cu_seqlens is None
    assert not kwargs
    q = q * (q.shape[-1] ** -0.5 if scale is None else scale)
    o, S = retention(q, k, v, log_decays("pow2", q.shape[2]), initial_state)
    return o, S if output_final_state else None


@pytest.fixture
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = ModuleType("fla.ops.retention")
    ops.chunk_retention = chunk_retention  # type: ignore[attr-defined]
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "fla.ops.retention", ops)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"0.6.0 of {name}")


@pytest.mark.usefixtures("_installed")
def test_flash_linear_attention_computes_ours_on_the_same_inputs() -> None:
    inputs = draw_inputs(CASE, CPU)
    name, forward = fla_retention(CUDA)
    assert name == "flash-linear-attention 0.6.0 of fla-core"
    want = ours(inputs, "torch")(*inputs[:3])
    torch.testing.assert_close(forward(*inputs[:3]), want)


def test_flash_linear_attention_is_optional_and_for_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(PeerMissing, match="runs on GPUs only"):
        fla_retention(CPU)
    monkeypatch.setitem(sys.modules, "fla", None)
    with pytest.raises(PeerMissing, match=r"pip install --no-deps fla-core==0\.6\.0 einops"):
        fla_retention(CUDA)


def test_attention_is_causal_softmax_over_heads_as_wide_as_the_keys() -> None:
    inputs = draw_inputs(CASE, CPU)
    rival = attention_rival(SDPBackend.FLASH_ATTENTION, inputs)
    assert rival.name == f"attention (flash, torch {torch.__version__})"
    q, k, v = rival.inputs[:3]
    assert q.shape == k.shape == v.shape == rival.inputs.d_o.shape == (2, 20, 3, 16)
    o = rival.forward(q, k, v)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(o, want.transpose(1, 2), atol=2e-2, rtol=2e-2)


def test_heads_of_attention_are_at_most_128_wide() -> None:
    inputs = draw_inputs(OpCase(D_k=256, D_v=512, T=4, B=1, H=2), CPU)
    rival = attention_rival(SDPBackend.FLASH_ATTENTION, inputs)
    assert rival.inputs.q.shape == rival.inputs.v.shape == (1, 4, 4, 128)
    assert torch.equal(rival.inputs.q.flatten(2), inputs.q.flatten(2))
