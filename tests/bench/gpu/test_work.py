import pytest

from retnet.bench.gpu.cases import OPS, TOKEN_HEADS, OpCase
from retnet.bench.gpu.work import attention_work, retention_work


@pytest.mark.parametrize(
    ("D_k", "D_v", "forward", "backward", "kflop"),
    [(64, 64, 512, 896, 33), (128, 256, 1536, 2560, 180), (256, 512, 3072, 5120, 623)],
)
def test_retention_moves_and_computes_what_its_formulas_say(
    D_k: int, D_v: int, forward: int, backward: int, kflop: int
) -> None:
    case = OpCase(D_k=D_k, D_v=D_v, T=4096, B=2)
    once, both = (retention_work(case, passes) for passes in ("fwd", "fwdbwd"))
    assert once.least_bytes == forward * case.token_heads
    assert both.least_bytes == (forward + backward) * case.token_heads
    assert round(once.operations / case.token_heads / 1e3) == kflop
    assert both.operations == 3 * once.operations


def test_attention_computes_half_of_all_pairs() -> None:
    case = OpCase(D_k=128, D_v=256, T=1024, B=1, H=1)
    once, both = (attention_work(case, passes) for passes in ("fwd", "fwdbwd"))
    assert once.operations == 4 * 1024**2 * 128 / 2
    assert both.operations == 3.5 * once.operations
    assert once.least_bytes == 2 * 4 * 1024 * 128


def test_cases_of_a_sweep_have_equally_many_token_heads_and_the_target_comes_first() -> None:
    target = OPS[0]
    assert (target.D_k, target.D_v, target.T, target.B * target.H) == (256, 256, 16_384, 32)
    assert {case.token_heads for case in OPS if case.B > 1 or case.T == 65_536} == {TOKEN_HEADS}
    assert len(set(OPS)) == len(OPS)
