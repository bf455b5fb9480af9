"""The official program, where it is installed, reads what we write and goes on where we stopped."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from model.small import close, decoder, tokens
from retnet.bench.peers import torchscale
from retnet.bench.sizes import ModelSize
from retnet.hub import save_checkpoint
from retnet.hub.foreign import convert, convert_state
from retnet.mixers.retention import RetentionConfig
from retnet.model import preset

pytest.importorskip("torchscale", reason=f"torchscale is not installed: {torchscale.INSTALL}")

SIZE = ModelSize(d_model=24, num_layers=2, num_heads=2, value_width=36, ffn_width=20, vocab_size=31)
MIXERS: dict[str, dict[str, Any]] = {
    "their own": {"theta": "linspace", "pairs": "interleaved", "decay": "pow2"},
    "ours": {"theta": "rope", "pairs": "half", "decay": "linspace"},
}


@pytest.mark.parametrize("case", MIXERS)
def test_torchscale_reads_our_export_and_continues_our_states(case: str, tmp_path: Path) -> None:
    """Angles and decays of ours are in its buffers, and channels in its order."""
    base = preset("torchscale-base", vocab_size=SIZE.vocab_size)
    [layer] = base.layers
    assert isinstance(layer.mixer, RetentionConfig)
    mixer = replace(layer.mixer, num_heads=2, value_width=36, **MIXERS[case])
    channel = replace(layer.channel, width=20)  # type: ignore[type-var]
    layer = replace(layer, mixer=mixer, channel=channel, repeat=2)
    config = replace(base, d_model=24, layers=(layer,), embed_scale=False, tie_embeddings=True)
    ours = decoder(config, torch.float32)
    save_checkpoint(tmp_path / "ours", ours)
    convert(tmp_path / "ours", tmp_path / "theirs", to="torchscale")
    theirs = torchscale.decoder(SIZE).eval()
    theirs.load_state_dict(load_file(tmp_path / "theirs" / "model.safetensors"))
    text = tokens(2, 12)

    def step_by_step(state: Any, first: int) -> Tensor:
        # it reads the whole text each time, to know where it is
        rows = [theirs(text[:, : n + 1], incremental_state=state)[0] for n in range(first, 12)]
        return torch.cat([row[:, -1:] for row in rows], 1)

    with torch.no_grad():
        want, _ = ours(text)
        close(step_by_step({}, 0), want, 1e-5)
        _, state = ours(text[:, :7])
        moved = convert_state(state, config, target="torchscale")
        close(step_by_step(moved, 7), want[:, 7:], 1e-5)
        begun: dict[Any, Any] = {}
        theirs(text[:, :1], incremental_state=begun)
        for n in range(1, 7):
            theirs(text[:, : n + 1], incremental_state=begun)
        state = convert_state(begun, config, source="torchscale", position=7)
        close(ours(text[:, 7:], state)[0], want[:, 7:], 1e-5)
