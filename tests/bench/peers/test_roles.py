import importlib
from typing import NoReturn

import pytest
import torch
from torch import Tensor

from retnet.bench.peers import PeerMissing
from retnet.bench.peers.missing import import_peer
from retnet.bench.peers.roles import GreedySteps


def test_greedy_steps_feed_what_they_chose() -> None:
    fed: list[list[int]] = []

    def step(tokens: Tensor) -> Tensor:
        fed.append(tokens.tolist())
        return torch.eye(5)[(tokens + 1) % 5]

    steps = GreedySteps(step, torch.eye(5)[[3, 1]])
    assert [next(steps).tolist() for _ in range(3)] == [[4, 2], [0, 3], [1, 4]]
    assert fed == [[3, 1], [4, 2], [0, 3]]


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_a_peer_that_does_not_load_is_left_out(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: str) -> NoReturn:
        raise error("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(PeerMissing, match=r"peer does not load \(libgomp.so.1.*: pip install it"):
        import_peer("peer", "peer", "pip install it")
