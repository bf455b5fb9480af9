"""The decoder's RMSNorm stands in for PyTorch's."""

import torch

from model.small import config, decoder, tokens
from retnet.model.norm import RMSNorm


def test_it_has_pytorch_s_keys_and_numbers() -> None:
    ours, theirs = RMSNorm(12, 1e-3), torch.nn.RMSNorm(12, eps=1e-3)
    with torch.no_grad():
        ours.weight.normal_()  # type: ignore[union-attr]
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(ours(x), theirs(x))


def test_a_decoder_calls_every_layer_that_someone_listens_to() -> None:
    """Libraries that keep weights elsewhere bring them when a layer is called."""
    model = decoder(config(), torch.float32)
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear | RMSNorm)]
    want, _ = model(tokens(1, 3))
    heard = []
    for layer in layers:
        layer.register_forward_hook(lambda module, *_: heard.append(module))
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            logits, _ = model(tokens(1, 3))
        assert {id(m) for m in heard} == {id(m) for m in layers}
        torch.testing.assert_close(logits, want)
        heard.clear()
