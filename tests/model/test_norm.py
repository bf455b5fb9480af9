"""The decoder's RMSNorm stands in for PyTorch's."""

import torch

from retnet.model.norm import RMSNorm


def test_it_has_pytorch_s_keys_and_numbers() -> None:
    ours, theirs = RMSNorm(12, 1e-3), torch.nn.RMSNorm(12, eps=1e-3)
    with torch.no_grad():
        ours.weight.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 12)
    torch.testing.assert_close(ours(x), theirs(x))
