"""Mixed chunk attention is its definition, wherever chunks, documents and calls begin."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.mixed_chunk import MixedChunkState, mixed_chunk
from retnet.types import Form

B, D_k, D_v = 2, 3, 4
FORMS = ("recurrent", "chunkwise", "parallel")
forms = pytest.mark.parametrize("form", FORMS)

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(T: int) -> Inputs:
    rng = torch.Generator().manual_seed(T)
    q, k = torch.randn(2, B, T, 2, D_k, generator=rng, dtype=torch.float64)
    return q, k, torch.randn(B, T, D_v, generator=rng, dtype=torch.float64)


def part(x: Inputs, *index: slice | Tensor) -> Inputs:
    q, k, v = x
    return q[index], k[index], v[index]


def definition(q: Tensor, k: Tensor, v: Tensor, chunk: int) -> Tensor:
    """All pairs, and which chunk each token is of."""
    pairs, sums = (q.transpose(1, 2) @ k.transpose(1, 2).mT).unbind(1)  # B T T
    of = torch.arange(q.shape[1]) // chunk
    same, before = of[:, None] == of, of[:, None] > of
    return (pairs.relu().square().tril() * same + sums * before) @ v


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@forms
@pytest.mark.parametrize("chunk", [1, 4, 7, 50])
def test_outputs_are_those_of_the_definition(chunk: int, form: Form) -> None:
    for T in {1, chunk - 1, chunk, chunk + 1, 2 * chunk, 19} - {0}:
        x = inputs(T)
        y, _ = mixed_chunk(*x, chunk=chunk, form=form)
        close(y, definition(*x, chunk))


@forms
def test_without_pairs_only_closed_chunks_are_read(form: Form) -> None:
    q, k, v = inputs(11)
    q[:, :, 0] = 0
    y, state = mixed_chunk(q, k, v, chunk=4, form=form)
    assert torch.equal(y[:, :4], torch.zeros_like(y[:, :4]))
    S = k[:, :8, 1].mT @ v[:, :8]
    close(y[:, 8:], q[:, 8:, 1] @ S)
    close(state.S, S)
    close(state.open_S, k[:, 8:, 1].mT @ v[:, 8:])


@forms
@pytest.mark.parametrize("T", [3, 4, 5])
def test_a_chunk_is_closed_by_its_own_last_token(T: int, form: Form) -> None:
    q, k, v = inputs(T)
    _, state = mixed_chunk(q, k, v, chunk=4, form=form)
    closed, slots = T // 4 * 4, torch.zeros(B, 4, dtype=torch.bool)
    slots[:, : T - closed] = True
    close(state.S, k[:, :closed, 1].mT @ v[:, :closed])
    close(state.k[slots], k[:, closed:, 0].flatten(0, 1))
    close(state.v[slots], v[:, closed:].flatten(0, 1))
    assert not state.k[~slots].any()
    assert not state.v[~slots].any()


@forms
@pytest.mark.parametrize("seed", range(3))
def test_rows_with_padding_and_starts_are_their_documents_alone(form: Form, seed: int) -> None:
    """In three calls with the state between, rows at different places of their chunks."""
    T, chunk, cuts = 40, 6, (0, 13, 14, 40)
    x = inputs(T)
    rng = torch.Generator().manual_seed(seed)
    valid = torch.rand(B, T, generator=rng) < 0.8
    starts = torch.rand(B, T, generator=rng) < 0.1
    state, position, outputs = None, None, []
    for now in (slice(*ends) for ends in pairwise(cuts)):
        tokens = now.stop - now.start
        layout = Layout.of(B, tokens, position=position, valid=valid[:, now], starts=starts[:, now])
        o, state = mixed_chunk(
            *part(x, slice(None), now), state, chunk=chunk, layout=layout, form=form
        )
        position = layout.next_position
        outputs.append(o)
    y = torch.cat(outputs, 1)
    assert torch.equal(y[~valid], torch.zeros_like(y[~valid]))
    assert isinstance(state, MixedChunkState)
    for b in range(B):
        document = (starts[b] & valid[b]).long().cumsum(0)
        last = int(document[-1])
        for d in range(last + 1):
            own = valid[b] & (document == d)
            alone = part(x, slice(b, b + 1), own)
            close(y[b : b + 1, own], definition(*alone, chunk))
        alone = part(x, slice(b, b + 1), valid[b] & (document == last))
        _, after = mixed_chunk(*alone, chunk=chunk, form="recurrent")
        for got, want in zip(state, after, strict=True):
            close(got[b : b + 1], want)


def test_gradients_of_the_forms_are_equal_through_a_state() -> None:
    found = []
    for form in FORMS:
        x = inputs(23)
        for y in x:
            y.requires_grad_()
        first, second = (part(x, slice(None), now) for now in (slice(9), slice(9, None)))
        o, state = mixed_chunk(*first, chunk=4, form=form)
        layout = Layout.of(B, 14, position=torch.full((B,), 9))
        rest, after = mixed_chunk(*second, state, chunk=4, layout=layout, form=form)
        loss = torch.cat([o, rest], 1).square().sum()
        loss = loss + sum(leaf.square().sum() for leaf in after)
        found.append(torch.autograd.grad(loss, x))
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            close(got, want)


def test_rows_spread_over_ranks_are_refused() -> None:
    layout = Layout.of(B, 4)
    object.__setattr__(layout, "spread", object())
    with pytest.raises(ValueError, match="must not be spread over several"):
        mixed_chunk(*inputs(4), chunk=2, layout=layout)
