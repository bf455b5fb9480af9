"""torch.compile takes the decoder as it is."""

import shutil
from dataclasses import replace

import pytest
import torch

from model.small import config, decoder, tokens

pytestmark = [
    pytest.mark.skipif(
        not any(shutil.which(name) for name in ("g++", "clang++", "c++")),
        reason="torch.compile needs a C++ compiler: apt-get install g++",
    ),
    pytest.mark.filterwarnings("ignore"),  # Dynamo hides warnings of its own, but not as errors
]


def test_a_compiled_decoder_gives_the_same_logits_states_and_gradients() -> None:
    described = replace(config(), layers=config().layers[:1])  # compiling is slow
    model, text = decoder(described, torch.float32), tokens(2, 40)
    compiled = torch.compile(model)
    results = []
    for run in (model, compiled):
        model.zero_grad()
        logits, state = run(text)
        logits.square().mean().backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append([logits.detach(), state.layers[0][0].S.detach(), *grads])
    for got, want in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)
