"""RWKV-4 by other people, with our weights: `transformers`, and pip's `rwkv`."""

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retnet.bench.peers.missing import (
    import_peer,
    peer_version,
    what_it_calls_may_be_deprecated,
)
from retnet.bench.peers.roles import (
    GreedySteps,
    Opened,
    Prefiller,
    Speaker,
    Trainee,
    num_parameters,
    weight_bytes,
)
from retnet.hub.foreign import Answers
from retnet.hub.foreign.formats import format_named
from retnet.model import Decoder

INSTALL = "pip install 'retnet[hf]'"
INSTALL_PIP = "pip install rwkv==0.8.32"
NUMBERS_OF_A_CHANNEL = 5  # that both keep of a text, in float32, in each layer


def trainee(ours: Decoder) -> Trainee:
    """Trained as people do: its own loss, no state."""
    model = _of_transformers(ours)

    def loss(inputs: Tensor, _targets: Tensor) -> Tensor:
        return model(input_ids=inputs, labels=inputs, use_cache=False).loss  # it shifts them itself

    return Trainee(_name(), model, loss)


def prefiller(ours: Decoder, dtype: torch.dtype) -> Prefiller:
    """Reads a prompt in one pass and keeps its state, as `generate` does."""
    model = _of_transformers(ours).eval().to(dtype)

    @torch.inference_mode()
    def read(tokens: Tensor) -> Tensor:
        return model(input_ids=tokens, use_cache=True, logits_to_keep=1).logits[0, -1]

    said = str(dtype).removeprefix("torch.")
    return Prefiller(_name(), said, num_parameters(model), read, lambda: _kept(ours))


def transformers_speaker(ours: Decoder) -> Speaker:
    """Decodes one row in float32; of several it broadcasts each row's state over the others."""
    model = _of_transformers(ours).eval()

    @torch.inference_mode()
    def open_(context: int, rows: int, steps: int) -> Opened:  # noqa: ARG001  (constant memory)
        assert rows == 1
        random = torch.Generator().manual_seed(0)
        tokens = torch.randint(ours.config.vocab_size, (1, context), generator=random)
        given = model(input_ids=tokens, use_cache=True)
        state = given.state

        @torch.inference_mode()
        def step(chosen: Tensor) -> Tensor:
            nonlocal state
            given = model(input_ids=chosen[:, None], state=state, use_cache=True)
            state = given.state
            return given.logits[:, -1]

        return Opened(GreedySteps(step, given.logits[:, -1]), _kept(ours), weight_bytes(model))

    return Speaker(_name(), "float32", num_parameters(model), open_)


def pip_speaker(ours: Decoder) -> Speaker:
    """Decodes one row, which is all it can, in float32 with its own scripted functions."""
    version = peer_version("rwkv", INSTALL_PIP)
    os.environ |= {"RWKV_JIT_ON": "1", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "0"}
    module: Any = import_peer("rwkv.model", "rwkv", INSTALL_PIP)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        torch.save(_theirs(ours, "rwkv4"), Path(folder) / "model.pth")
        with what_it_calls_may_be_deprecated():
            model = module.RWKV(model=str(Path(folder) / "model"), strategy="cpu fp32")

    def open_(context: int, rows: int, steps: int) -> Opened:  # noqa: ARG001  (constant memory)
        assert rows == 1
        random = torch.Generator().manual_seed(0)
        tokens = torch.randint(ours.config.vocab_size, (context,), generator=random)
        logits, state = model.forward(tokens.tolist(), None)

        def step(chosen: Tensor) -> Tensor:
            logits, _ = model.forward([int(chosen)], state)  # it writes into the state
            return logits[None]

        read = 4 * sum(p.numel() for p in ours.parameters())
        return Opened(GreedySteps(step, logits[None]), _kept(ours), read)

    return Speaker(f"rwkv {version}", "float32", ours.num_parameters(), open_)


def _kept(ours: Decoder) -> int:
    return 4 * NUMBERS_OF_A_CHANNEL * ours.config.d_model * ours.config.num_layers


def _theirs(ours: Decoder, name: str) -> dict[str, Tensor]:
    """Our weights under another program's names."""
    weights = ours.state_dict()
    found: dict[str, Tensor] = {}
    for rule in format_named(name).express(ours.config, Answers({}, {}, "")).rules:
        theirs = rule.change.to_theirs(*(weights[key] for key in rule.ours))
        found |= {key: x.clone() for key, x in zip(rule.theirs, theirs, strict=True)}
    return found


def _of_transformers(ours: Decoder) -> Any:
    transformers = import_peer("transformers", "transformers", INSTALL)
    described = dict(format_named("rwkv-hf").express(ours.config, Answers({}, {}, "")).config)
    for name in ("model_type", "architectures"):
        described.pop(name)
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(**described))
    model.load_state_dict(_theirs(ours, "rwkv-hf"))
    return model


def _name() -> str:
    return f"transformers {peer_version('transformers', INSTALL)} RWKV"
