"""Work: the bytes that must move and the operations that must be done, per call.

Per token and head in bfloat16, the forward pass reads q, k and v and writes o: `4 (D_k + D_v)`
bytes. The backward pass reads q, k, v and d_o and writes d_q, d_k and d_v: `8 D_k + 6 D_v`.

Operations are those of matrix products, a multiplication and an addition as two. Retention's are
counted with chunks of 64 tokens, `2 C (D_k + D_v) + 4 D_k D_v`, whoever computes it and with
whatever chunks, so that shares can be compared; the backward pass counts twice. Attention's are
the pairs that the causal mask leaves, half of T^2, and its backward pass counts two and a half
times: five products to the forward's two.
"""

from typing import Literal, NamedTuple

from retnet.bench.gpu.cases import PEER_CHUNK, OpCase
from retnet.ops.retention.flops import product_flops

Passes = Literal["fwd", "fwdbwd"]
PASSES: tuple[Passes, ...] = ("fwd", "fwdbwd")


class Work(NamedTuple):
    """Of one call.

    Attributes:
        least_bytes: that any program must read and write.
        operations: of matrix products.
    """

    least_bytes: float
    operations: float


def retention_work(case: OpCase, passes: Passes) -> Work:
    """Of retention, forward or forward with backward."""
    least = 4 * (case.D_k + case.D_v)
    operations = product_flops(min(PEER_CHUNK, case.T), case.D_k, case.D_v)
    if passes == "fwdbwd":
        least += 8 * case.D_k + 6 * case.D_v
        operations *= 3
    return Work(float(case.token_heads * least), float(case.token_heads * operations))


def attention_work(case: OpCase, passes: Passes) -> Work:
    """Of causal softmax attention with queries, keys and values as wide as the case's keys."""
    least = 8 * case.D_k
    operations = 2.0 * case.T * case.D_k
    if passes == "fwdbwd":
        least += 14 * case.D_k
        operations *= 3.5
    return Work(float(case.token_heads * least), case.token_heads * operations)
