"""What every branch says of its own operations is what PyTorch counts."""

from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mixers.cases import D, build, cases
from retnet.mixers import Branch
from retnet.ops import Layout

B = 2


def cpu_attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """PyTorch counts attention's kernels for GPUs only; this is what it counts of them."""
    return sdpa_flop_count(q, k, v)


CPU_KERNELS = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: cpu_attention}


@pytest.mark.parametrize(
    ("name", "given"), cases(), ids=[f"{name}{i}" for i, (name, _) in enumerate(cases())]
)
@pytest.mark.parametrize("T", [32, 64])
def test_a_branch_counts_its_operations(name: str, given: dict[str, Any], T: int) -> None:
    """By what more rows add: what all rows share, such as a kernel, costs none of them."""
    module = build(name, given)
    weights = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    totals = []
    for rows in (B, 2 * B):
        with FlopCounterMode(display=False, custom_mapping=CPU_KERNELS) as counter:
            x = torch.ones(rows, T, D, dtype=torch.float64)
            module(x, None, Layout.of(rows, T), "chunkwise")
        totals.append(counter.get_total_flops())
    said = cast(Branch, module).flops_per_token(T)
    assert totals[1] - totals[0] == B * T * (2 * weights + said)
