"""Each refusal names the value, the rule and the remedy."""

from typing import Any

import pytest
import torch

from ops.reference import random_case
from retnet.ops import Layout, retention
from unchecked import unchecked

CASE = random_case((2, 5, 3, 4, 6), dtype=torch.float32)
GOOD: dict[str, Any] = {"q": CASE.q, "k": CASE.k, "v": CASE.v, "log_decay": CASE.log_decay}

BAD = {
    "unknown form": (
        {"form": "fast"},
        "retention has no torch/fast; choose one of torch/parallel, torch/recurrent, "
        "torch/chunkwise",
    ),
    "unknown backend": ({"backend": "abacus"}, "retention has no abacus/chunkwise; choose one of"),
    "q of three dimensions": (
        {"q": CASE.q[0]},
        r"q has shape \(5, 3, 4\); it must have 4 dimensions, \(B, T, H, D\)",
    ),
    "k of three dimensions": ({"k": CASE.k[0]}, "k has shape .* 4 dimensions"),
    "v of three dimensions": ({"v": CASE.v[0]}, "v has shape .* 4 dimensions"),
    "k of another width": (
        {"k": CASE.k[..., :2]},
        r"k has shape \(2, 5, 3, 2\) and q \(2, 5, 3, 4\); they must be equal",
    ),
    "k of one row for all": ({"k": CASE.k[:1]}, "k has shape .* they must be equal"),
    "v of another length": (
        {"v": CASE.v[:, :4]},
        r"v has shape \(2, 4, 3, 6\); its first three sizes must be q's, "
        r"\(B, T, H\) = \(2, 5, 3\)",
    ),
    "no token": (
        {name: GOOD[name][:, :0] for name in ("q", "k", "v")},
        "T is 0; pass at least one token",
    ),
    "whole numbers": (
        {name: GOOD[name].long() for name in ("q", "k", "v")},
        "q, k, v have dtypes torch.int64.*one floating dtype",
    ),
    "mixed dtypes": (
        {"v": CASE.v.bfloat16()},
        r"dtypes torch.float32, torch.float32, torch.bfloat16; they must share one.*"
        r"\.to\(q\.dtype\)",
    ),
    "a decay too few": (
        {"log_decay": CASE.log_decay[:2]},
        r"log_decay has shape \(2,\); it must be \(H,\) = \(3,\)",
    ),
    "one decay for all": ({"log_decay": torch.tensor(-0.1)}, r"log_decay has shape \(\)"),
    "a state of other widths": (
        {"state": torch.zeros(2, 3, 6, 4)},
        r"state has shape \(2, 3, 6, 4\); it must be \(B, H, D_k, D_v\) = \(2, 3, 4, 6\)",
    ),
    "a state of half precision": (
        {"state": torch.zeros(2, 3, 4, 6, dtype=torch.bfloat16)},
        "state has dtype torch.bfloat16; for torch.float32 inputs it must be torch.float32",
    ),
    "a float32 state for float64": (
        {name: GOOD[name].double() for name in ("q", "k", "v")}
        | {"state": torch.zeros(2, 3, 4, 6)},
        "state has dtype torch.float32; for torch.float64 inputs it must be torch.float64",
    ),
    "a layout of another length": (
        {"layout": Layout.of(2, 4, valid=torch.ones(2, 4, dtype=torch.bool))},
        r"layout.valid has shape \(2, 4\); it must be \(B, T\) = \(2, 5\)",
    ),
    "a layout of other rows": (
        {"layout": Layout.of(1, 5, starts=torch.ones(1, 5, dtype=torch.bool))},
        r"layout.starts has shape \(1, 5\); it must be \(B, T\) = \(2, 5\)",
    ),
    "keys elsewhere": ({"k": CASE.k.to("meta")}, "k is on meta and q on cpu; move them to one"),
    "decays elsewhere": (
        {"log_decay": CASE.log_decay.to("meta")},
        "log_decay is on meta and q on cpu; move them to one device",
    ),
    "no chunk": ({"chunk_size": 0}, r"chunk_size \(0\) must be at least 1; leave it out"),
}


@pytest.mark.parametrize("what", BAD)
def test_refuses(what: str) -> None:
    arguments, message = BAD[what]
    with unchecked(), pytest.raises(ValueError, match=message):
        retention(**(GOOD | arguments))


def test_the_arguments_that_each_refusal_changes_are_fine_themselves() -> None:
    o, S = retention(**GOOD)
    assert o.shape == (2, 5, 3, 6)
    assert S.shape == (2, 3, 4, 6)
