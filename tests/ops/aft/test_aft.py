"""AFT in all variants is the mean that its definition says."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout
from retnet.ops.aft import aft_full, aft_local, aft_simple
from retnet.ops.aft.full import BLOCK
from retnet.ops.wkv import wkv
from support import kept_bytes

B, A = 2, 5


def tokens(T: int, size: float = 1.0) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(T)
    k, v = torch.randn(2, B, T, A, generator=rng, dtype=torch.float64)
    return size * k, v


def biases(T: int, window: int | None = None) -> tuple[Tensor, Tensor]:
    """Of every pair, and the same by distance: zero from `window` on."""
    rng = torch.Generator().manual_seed(1)
    w = torch.randn(T, T, generator=rng, dtype=torch.float64)
    window = window or T
    t = torch.arange(T)[:, None]
    near = (t - t.T < window) & (t >= t.T)
    w = w.where(near, 0.0)
    key = t - torch.arange(window)
    return w, w.gather(1, key.clamp(min=0)) * (key >= 0)


def definition(k: Tensor, v: Tensor, w: Tensor) -> Tensor:
    """A loop over queries, in logarithms: the judge of every variant."""
    T = k.shape[1]
    rows = []
    for t in range(T):
        logits = k[:, : t + 1] + w[t, : t + 1, None]
        rows.append((logits.softmax(1) * v[:, : t + 1]).sum(1))
    return torch.stack(rows, 1)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("T", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 2])
@pytest.mark.parametrize("size", [1.0, 200.0])
def test_full_is_its_definition(T: int, size: float) -> None:
    (k, v), (w, _) = tokens(T, size), biases(T)
    close(aft_full(k, v, w)[0], definition(k, v, w))


@pytest.mark.parametrize("window", [1, 2, 7, 40, 60])
@pytest.mark.parametrize("size", [1.0, 200.0])
def test_far_tokens_still_count_in_local(window: int, size: float) -> None:
    T = 40
    (k, v), (w, by_distance) = tokens(T, size), biases(T, min(window, T))
    by_distance = torch.nn.functional.pad(by_distance, (0, max(0, window - T)))
    close(aft_local(k, v, by_distance)[0], definition(k, v, w))


@pytest.mark.parametrize("size", [1.0, 200.0])
def test_simple_has_no_biases(size: float) -> None:
    k, v = tokens(50, size)
    want = definition(k, v, torch.zeros(50, 50).double())
    close(aft_simple(k, v)[0], want)
    close(aft_full(k, v, torch.zeros(50, 50).double())[0], want)
    close(aft_local(k, v, torch.zeros(50, 3).double())[0], want)


def test_local_with_a_window_of_all_tokens_is_full() -> None:
    (k, v), (w, by_distance) = tokens(20), biases(20)
    close(aft_local(k, v, by_distance)[0], aft_full(k, v, w)[0])


def test_full_with_biases_of_distance_is_the_mean_of_rwkv() -> None:
    """RWKV-4 is AFT whose biases fall with distance, and in simple neither decays nor adds."""
    T, decay, bonus = 45, -1.5, 0.7
    k, v = tokens(T)
    t = torch.arange(T, dtype=torch.float64)
    w = -(t[:, None] - 1 - t) * torch.tensor(decay, dtype=torch.float64).exp()
    w = w.where(t[:, None] != t, bonus)
    d, u, never = (torch.full((A,), x, dtype=torch.float64) for x in (decay, bonus, -60.0))
    close(aft_full(k, v, w.clamp(min=-100, max=1))[0], wkv(k, v, d, u)[0])
    close(aft_simple(k, v)[0], wkv(k, v, never, 0 * u)[0])


VARIANTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "full": lambda k, v: aft_full(k, v, biases(70)[0].to(k.dtype))[0],
    "local": lambda k, v: aft_local(k, v, biases(70, 6)[1].to(k.dtype))[0],
    "simple": lambda k, v: aft_simple(k, v)[0],
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


@every_variant
def test_outputs_lie_between_the_smallest_and_the_largest_value_so_far(variant: str) -> None:
    k, v = tokens(70, 3.0)
    y = VARIANTS[variant](k, v)
    assert (y <= v.cummax(1).values + 1e-12).all()
    assert (y >= v.cummin(1).values - 1e-12).all()


@every_variant
@pytest.mark.parametrize("sign", [1, -1])
def test_float32_survives_keys_of_two_hundred_with_gradients(variant: str, sign: int) -> None:
    """Also keys that grow, or fall, from one end of that range to the other."""
    _, v = tokens(70)
    k = (sign * torch.linspace(-200, 200, 70)).view(1, 70, 1).expand(B, 70, A)
    exact = VARIANTS[variant](k.double(), v)
    k, v = k.clone().requires_grad_(), v.float().requires_grad_()
    y = VARIANTS[variant](k, v)
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)
    y.square().sum().backward()
    assert k.grad is not None
    assert v.grad is not None
    assert k.grad.isfinite().all()
    assert v.grad.isfinite().all()


@every_variant
def test_autocast_leaves_the_sums_alone(variant: str) -> None:
    k, v = (x.float() for x in tokens(70))
    want = VARIANTS[variant](k, v)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(VARIANTS[variant](k, v), want)


@every_variant
def test_gradients_are_those_of_the_definition(variant: str) -> None:
    T = 2 * BLOCK + 3
    w, near = biases(70), biases(70, 6)
    w = {"full": w[0], "local": near[0], "simple": torch.zeros(70, 70).double()}[variant]
    grads = []
    for function in (VARIANTS[variant], lambda k, v: definition(k, v, w)):
        k, v = (x.requires_grad_() for x in tokens(T))
        weights = torch.randn(B, T, A, generator=torch.Generator().manual_seed(2)).double()
        grads.append(torch.autograd.grad((function(k, v) * weights).sum(), (k, v)))
    for got, want in zip(*grads, strict=True):
        close(got, want)


@pytest.mark.parametrize("seed", range(4))
def test_rows_with_padding_and_starts_are_their_documents_alone(seed: int) -> None:
    """Of full and local, in two calls with the state between; contract tests see short rows."""
    T, cut, window = 70, 33, 5
    k, v = tokens(T)
    (w, _), (_, by_distance) = biases(T), biases(T, window)
    rng = torch.Generator().manual_seed(seed)
    valid = torch.rand(B, T, generator=rng) < 0.8
    starts = (torch.rand(B, T, generator=rng) < 0.07) & valid
    for op, bias in ((aft_full, w), (aft_local, by_distance)):
        layout = Layout.of(B, cut, valid=valid[:, :cut], starts=starts[:, :cut])
        first, state = op(k[:, :cut], v[:, :cut], bias, layout=layout)  # type: ignore[operator]
        layout = Layout.of(
            B, T - cut, position=layout.next_position, valid=valid[:, cut:], starts=starts[:, cut:]
        )
        second, _ = op(k[:, cut:], v[:, cut:], bias, state, layout=layout)  # type: ignore[operator]
        y = torch.cat([first, second], 1)
        for b in range(B):
            document = starts[b].long().cumsum(0)
            for d in document.unique():
                own = valid[b] & (document == d)
                if own.any():
                    alone, _ = op(k[b : b + 1, own], v[b : b + 1, own], bias)  # type: ignore[operator]
                    close(y[b : b + 1, own], alone)
        assert torch.equal(y[~valid], torch.zeros_like(y[~valid]))


@pytest.mark.parametrize("op", [aft_full, aft_local])
def test_a_document_longer_than_the_biases_is_refused(op: Callable[..., object]) -> None:
    k, v = tokens(9)
    bias = torch.zeros(9, 9 if op is aft_full else 3).double()
    op(k, v, bias)
    with pytest.raises(ValueError, match=r"token at position 9, and the position .* max_len \(9\)"):
        op(k, v, bias, layout=Layout.of(B, 9, position=torch.ones(B).long()))
    starts = torch.zeros(B, 9).bool()
    starts[:, 4] = True  # two documents, both short enough
    short = bias[:5, :5] if op is aft_full else bias[:5]
    op(k, v, short, layout=Layout.of(B, 9, starts=starts))
    with pytest.raises(ValueError, match=r"token at position 5"):
        op(k, v, short, layout=Layout.of(B, 9, starts=starts.roll(2, 1)))


def test_what_full_keeps_for_gradients_does_not_grow_with_the_square_of_the_text() -> None:
    def kept(T: int) -> int:
        k, v = (torch.randn(1, T, 4, requires_grad=True) for _ in "kv")
        bias = torch.zeros(256, 256, requires_grad=True)
        sizes = kept_bytes(lambda: aft_full(k, v, bias)).values()
        return sum(sizes) - bias.untyped_storage().nbytes()

    assert kept(256) < 2.2 * kept(128)
