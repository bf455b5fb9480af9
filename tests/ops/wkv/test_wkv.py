"""WKV in every form against the definition, written out; its gradients, states and extremes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from retnet.ops import Layout, wkv
from retnet.ops.wkv import WKVState, from_scaled_sums, to_scaled_sums, torch_backend
from retnet.types import Form
from support import assert_within_budget
from unchecked import unchecked

FORMS: tuple[Form, ...] = ("parallel", "recurrent", "chunkwise")
B, A = 2, 5
every_form = pytest.mark.parametrize("form", [*FORMS, None])


@pytest.fixture(autouse=True)
def _many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that tokens are left over after the last whole block."""
    monkeypatch.setattr(torch_backend, "best_num_blocks", lambda T, lanes: 4 if T > 8 else 1)  # noqa: ARG005


def inputs(T: int, size: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """k, v, time_decay from slow to fast, time_first."""
    random = torch.Generator().manual_seed(T)
    k, v = torch.randn(2, B, T, A, generator=random, dtype=torch.float64)
    d, u = torch.linspace(-5, 3, A), torch.randn(A, generator=random)
    return (size * k).to(dtype), v.to(dtype), d.to(dtype), u.to(dtype)


def written_out(k: Tensor, v: Tensor, d: Tensor, u: Tensor) -> Tensor:
    """The definition, token by token: the previous token undecayed, the current one with u."""
    w, ys = -d.exp(), []
    for t in range(k.shape[1]):
        weights = [((t - 1 - i) * w + k[:, i]).exp() for i in range(t)] + [(u + k[:, t]).exp()]
        total = sum(weight * v[:, i] for i, weight in enumerate(weights))
        ys.append(total / sum(weights))
    return torch.stack(ys, 1)


def some_state(dtype: torch.dtype = torch.float64) -> WKVState:
    """Of a row that has read something, and of a fresh one."""
    random = torch.Generator().manual_seed(7)
    seen = torch.tensor([1.0, 0.0], dtype=dtype)
    mean, log_mass = torch.randn(2, B, A, generator=random, dtype=dtype) * seen[:, None]
    return WKVState(mean, log_mass, seen)


def a_layout(T: int) -> Layout:
    """Gaps, a document start inside, and a row that begins with padding."""
    valid, starts = torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
    valid[0, 2::5], valid[1, :3] = False, False
    starts[0, T // 2], starts[1, 1::4] = True, True
    return Layout.of(B, T, valid=valid, starts=starts)


def close(got: Tensor, want: Tensor, limit: float = 1e-12) -> None:
    torch.testing.assert_close(got, want, rtol=limit, atol=limit)


@every_form
@pytest.mark.parametrize("T", [1, 2, 3, 8, 9, 37])
def test_every_form_is_the_definition(T: int, form: Form | None) -> None:
    """Trap 7: decays and the bonus are at their places."""
    k, v, d, u = inputs(T)
    close(wkv(k, v, d, u, form=form)[0], written_out(k, v, d, u))


def test_there_are_never_more_blocks_than_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for T in (*range(1, 40), 1000):
        assert 1 <= torch_backend.best_num_blocks(T, lanes=1) <= T
        assert torch_backend.best_num_blocks(T, lanes=1 << 30) == 1


@every_form
def test_a_mean_stays_between_its_values_and_begins_with_the_first(form: Form | None) -> None:
    k, v, d, u = inputs(37, size=3.0)
    y, _ = wkv(k, v, d, u, form=form)
    assert torch.equal(y[:, 0], v[:, 0])
    assert (y <= v.cummax(1).values + 1e-12).all()
    assert (y >= v.cummin(1).values - 1e-12).all()


@every_form
@pytest.mark.parametrize("cut", [0, 1, 11, 36, 37])
def test_a_text_may_be_split_anywhere_even_into_nothing(cut: int, form: Form | None) -> None:
    """Traps 12 and 14: T = 0 returns nothing and the state as it was."""
    k, v, d, u = inputs(37)
    y, state = wkv(k, v, d, u, some_state(), form=form)
    first, between = wkv(k[:, :cut], v[:, :cut], d, u, some_state(), form=form)
    second, after = wkv(k[:, cut:], v[:, cut:], d, u, between, form=form)
    close(torch.cat((first, second), 1), y)
    for got, want in zip(after, state, strict=True):
        close(got, want)


@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
@pytest.mark.parametrize("T", [1, 2, 37])
@pytest.mark.parametrize("laid_out", [False, True])
def test_gradients_agree_with_finite_differences_into_and_out_of_the_state(
    T: int, form: Form, laid_out: bool
) -> None:
    """Trap 12."""
    layout, state = a_layout(T) if laid_out else None, some_state()

    def computed(k: Tensor, v: Tensor, d: Tensor, u: Tensor, m: Tensor, L: Tensor) -> Any:
        y, after = wkv(k, v, d, u, WKVState(m, L, state.seen), layout=layout, form=form)
        return y, after.mean, after.log_mass

    given = [x.clone().requires_grad_() for x in (*inputs(T), state.mean, state.log_mass)]
    assert torch.autograd.gradcheck(computed, given, fast_mode=T > 2)


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("with_state", [False, True])
def test_outputs_and_gradients_are_the_same_in_every_form(with_state: bool, laid_out: bool) -> None:
    """The closed form beside autograd through the definition, at T = 37."""
    layout, state = a_layout(37) if laid_out else None, some_state()
    found: dict[str, list[Tensor]] = {}
    for form in FORMS:
        given = [x.clone().requires_grad_() for x in inputs(37)]
        before = [x.clone().requires_grad_() for x in (state.mean, state.log_mass)]
        of = WKVState(before[0], before[1], state.seen) if with_state else None
        k, v, d, u = given
        y, after = wkv(k, v, d, u, of, layout=layout, form=form)
        outputs = [y, after.mean, after.log_mass]
        weights = torch.Generator().manual_seed(0)
        loss = sum((x * torch.randn(x.shape, generator=weights)).sum() for x in outputs)
        wanted = given + before if with_state else given
        found[form] = [*outputs, *torch.autograd.grad(loss, wanted)]  # type: ignore[arg-type]
    for form in FORMS[1:]:
        for got, want in zip(found[form], found["parallel"], strict=True):
            close(got, want, 1e-10)


@every_form
@pytest.mark.parametrize("size", ["+-110", "+-200", "near -200"])
def test_keys_of_any_size_give_finite_and_right_numbers_in_float32(
    size: str, form: Form | None
) -> None:
    """Traps 1 and 2: exp of such keys overflows, or is 0 for all of a row."""
    _, v, d, u = inputs(64)
    k = torch.empty(B, 64, A, dtype=torch.float64)
    low, high = {"+-110": (-110, 110), "+-200": (-200, 200), "near -200": (-201, -199)}[size]
    k.uniform_(low, high).copy_(k.float())
    exact, exact_state = wkv(k, v, d, u, form="parallel")
    given = [x.float().requires_grad_() for x in (k, v, d, u)]
    k, v, d, u = given
    y, state = wkv(k, v, d, u, form=form)
    assert (y.double() - exact).abs().max() < 1e-4
    assert (state.mean.double() - exact_state.mean).abs().max() < 1e-4
    (y.sum() + state.mean.sum() + state.log_mass.sum()).backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in given)


@pytest.mark.parametrize("form", ["recurrent", "chunkwise"])
@pytest.mark.parametrize("T", [37, 200])
def test_rounding_errors_are_those_of_the_definition(T: int, form: Form) -> None:
    """Gradients are sums of differences: what they lose is measured by the largest of them."""
    found: dict[str, list[Tensor]] = {}
    for name, dtype, how in (
        ("exact", torch.float64, "parallel"),
        ("plain", torch.float32, "parallel"),
        ("got", torch.float32, form),
    ):
        given = [x.requires_grad_() for x in inputs(T, dtype=dtype)]
        k, v, d, u = given
        y, state = wkv(k, v, d, u, form=how)  # type: ignore[arg-type]
        found[name] = [y, state.mean, *torch.autograd.grad(y.square().sum(), given)]
    all_ = zip(found["got"], found["plain"], found["exact"], strict=True)
    for i, (got, plain, exact) in enumerate(all_):
        if i < 2:
            assert_within_budget(got, plain, exact, factor=4.0)
        else:
            assert (got - exact).abs().max() < 1e-6 * max(1.0, exact.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_states_are_float32_whatever_the_inputs_are(dtype: torch.dtype) -> None:
    """Trap 3: over 2,048 steps a state of 16 bits would be off by a third."""
    k, v, d, u = inputs(2048)
    k, v = k.to(dtype), v.to(dtype)
    y, state = wkv(k, v, d, u)
    exact, exact_state = wkv(k.double(), v.double(), d, u)
    assert y.dtype == dtype
    assert all(leaf.dtype == torch.float32 for leaf in state)
    assert (state.mean.double() - exact_state.mean).abs().max() < 2e-5
    assert (state.log_mass.double() - exact_state.log_mass).abs().max() < 2e-5
    assert (y.double() - exact).abs().max() < 4 * torch.finfo(dtype).eps + 2e-5


def test_float32_does_not_lose_the_slowest_decay_over_a_long_text() -> None:
    """No length limit (trap 11), and no exponent that grows with it (spec 1.7)."""
    T = 10_000
    k, v, d, u = inputs(T)
    d = d - 4.5  # retains e^(-e^-9.5) of a token
    y, state = wkv(k.float(), v.float(), d.float(), u.float())
    exact, exact_state = wkv(k, v, d, u)
    assert (y.double() - exact).abs().max() < 2e-5
    assert (state.log_mass.double() - exact_state.log_mass).abs().max() < 1e-3


def test_rows_with_states_of_their_own_are_as_if_alone() -> None:
    """Trap 15, at T = 1 and at more."""
    for T in (1, 9):
        k, v, d, u = inputs(T)
        y, after = wkv(k, v, d, u, some_state())
        for b in range(B):
            alone = WKVState(*(leaf[b : b + 1] for leaf in some_state()))
            y_b, after_b = wkv(k[b : b + 1], v[b : b + 1], d, u, alone)
            close(y[b : b + 1], y_b)
            for got, want in zip(after, after_b, strict=True):
                close(got[b : b + 1], want)


def test_scaled_sums_mean_the_same_and_come_back() -> None:
    """The official code's recurrence of (aa, bb, pp) beside ours."""
    k, v, d, u = inputs(9)
    w = -d.exp()
    aa, bb, pp = to_scaled_sums(WKVState(*(torch.zeros_like(leaf) for leaf in some_state())))
    assert (pp == -1e30).all()
    ys = []
    for k_t, v_t in zip(k.unbind(1), v.unbind(1), strict=True):
        q = torch.maximum(pp, u + k_t)
        old, new = (pp - q).exp(), (u + k_t - q).exp()
        ys.append((old * aa + new * v_t) / (old * bb + new))
        q = torch.maximum(pp + w, k_t)
        old, new = (pp + w - q).exp(), (k_t - q).exp()
        aa, bb, pp = old * aa + new * v_t, old * bb + new, q
    y, state = wkv(k, v, d, u)
    close(y, torch.stack(ys, 1))
    for got, want in zip(from_scaled_sums(aa, bb, pp), state, strict=True):
        close(got, want)
    for got, want in zip(
        from_scaled_sums(*to_scaled_sums(some_state())), some_state(), strict=True
    ):
        close(got, want)


def test_scaled_sums_with_mass_in_half_of_a_row_are_refused() -> None:
    with pytest.raises(ValueError, match="check the order aa, bb, pp"):
        from_scaled_sums(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "scan"}, "wkv has no None/scan"),
        ({"backend": "triton"}, "wkv has no triton/None"),
        ({"v": torch.zeros(B, 4, A)}, r"both must be \(B, T, A\)"),
        ({"v": torch.zeros(B, 3, A).double()}, "share one floating dtype"),
        ({"time_first": torch.zeros(4)}, r"time_first has shape \(4,\)"),
        ({"layout": Layout.of(1, 3, valid=torch.ones(1, 3).bool())}, "layout.valid has shape"),
        ({"state": some_state()}, "state.mean has shape"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "k": torch.zeros(B, 3, A),
        "v": torch.zeros(B, 3, A),
        "time_decay": torch.zeros(A),
        "time_first": torch.zeros(A),
    }
    with unchecked(), pytest.raises(ValueError, match=message):
        wkv(**given | change)
