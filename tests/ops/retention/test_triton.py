"""The Triton backend computes the recurrence: in the interpreter, where there is no GPU."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ops.reference import Case, random_case, recurrence
from retnet.ops import retention
from retnet.ops.retention import backends, retention_step_
from support import assert_within_budget
from unchecked import unchecked

if not backends.HAVE_TRITON:
    pytest.skip("triton is not installed: pip install 'retnet[gpu]'", allow_module_level=True)

from retnet.ops.retention import triton_backend, triton_kernels

DEVICE = "cpu" if triton_kernels.INTERPRETED else "cuda"
F32 = torch.float32
DTYPES = (F32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NAMES = ("o", "S", "d_q", "d_k", "d_v", "d_state")


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel does not write is NaN, so that nothing can look right by luck."""

    def poisoned(make: Any) -> Any:
        def empty(*args: Any, **kwargs: Any) -> Tensor:
            made = make(*args, **kwargs)
            return made.fill_(torch.nan) if made.is_floating_point() else made

        return empty

    monkeypatch.setattr(triton_backend.torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(triton_backend.torch, "empty_like", poisoned(torch.empty_like))


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of few tokens are cut, as if the chip had a thousand processors."""
    monkeypatch.setattr(triton_backend, "SEGMENT_TOKENS", 14)
    monkeypatch.setattr(triton_backend, "_processors", lambda _: 1000)


def op(case: Case, form: str, chunk_size: int | None, backend: str = "triton") -> Any:
    """The op on the device of the kernels, its results on the CPU."""
    moved = [None if x is None else x.to(DEVICE) for x in case]
    here = Case(*moved)  # type: ignore[arg-type]
    o, S = retention(
        *here[:5],
        layout=here.layout(),
        form=form,  # type: ignore[arg-type]
        backend=backend,  # type: ignore[arg-type]
        chunk_size=chunk_size if form == "chunkwise" else None,
    )
    return o.cpu(), S.cpu()


def with_gradients(function: Any, case: Case) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in (*case[:3], case.state) if x is not None]
    state = leaves[3] if case.state is not None else None
    o, S = function(case.with_inputs(leaves[:3])._replace(state=state))
    rng = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=rng).to(x.dtype) for x in (o, S)]
    return [o.detach(), S.detach(), *torch.autograd.grad((o, S), leaves, weights)]


def masked(case: Case, valid: float = 0.7, starts: float = 0.1) -> Case:
    """Padding with garbage in it, and document starts, anywhere."""
    rng = torch.Generator().manual_seed(3)
    real = torch.rand(case.q.shape[:2], generator=rng) < valid
    case = case.with_inputs([x.masked_fill(~real[..., None, None], 1e4) for x in case[:3]])
    return case._replace(valid=real, starts=torch.rand(case.q.shape[:2], generator=rng) < starts)


def assert_equals_the_recurrence(case: Case, form: str, chunk_size: int | None = None) -> None:
    """In float32, to its rounding."""
    exact = with_gradients(lambda c: op(c, "recurrent", None, "torch"), case.double())
    got = with_gradients(lambda c: op(c, form, chunk_size), case)
    for name, a, b in zip(NAMES[: len(got)], got, exact, strict=True):
        limit = 2e-6 * max(1.0, b.abs().max().item())
        assert (a.double() - b).abs().max().item() <= limit, name


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("T", [1, 15, 16, 17, 33])
def test_chunkwise_equals_the_recurrence_at_odd_lengths_and_widths(T: int, masks: bool) -> None:
    case = random_case((2, T, 1, 24, 40) if masks else (1, T, 2, 24, 40), state=True, dtype=F32)
    assert_equals_the_recurrence(masked(case) if masks else case, "chunkwise", 16)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("T", [1, 6])
def test_recurrent_equals_the_recurrence_at_odd_lengths_and_widths(T: int, masks: bool) -> None:
    case = random_case((2, T, 1, 24, 40) if masks else (1, T, 2, 24, 40), state=True, dtype=F32)
    assert_equals_the_recurrence(masked(case, starts=0.3) if masks else case, "recurrent")


@pytest.mark.usefixtures("short_segments")
@pytest.mark.parametrize(("T", "segments"), [(27, 1), (31, 2), (45, 3)])
@pytest.mark.parametrize("masks", [False, True])
def test_a_row_in_segments_equals_the_recurrence(T: int, segments: int, masks: bool) -> None:
    case = random_case((1, T, 2, 16, 24), state=True, dtype=F32)
    assert triton_backend.cut(T, 2, 1000, 16).segments == segments
    assert_equals_the_recurrence(masked(case, starts=0.03) if masks else case, "chunkwise", 16)


@pytest.mark.parametrize("mask", ["valid", "starts"])
def test_either_mask_comes_alone(mask: str) -> None:
    case = masked(random_case((2, 20, 1, 16, 16), dtype=F32))
    case = case._replace(starts=None) if mask == "valid" else case._replace(valid=None)
    if mask == "starts":
        case = case.with_inputs([x.clamp(-3, 3) for x in case[:3]])
    assert_equals_the_recurrence(case, "chunkwise", 16)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_widths_of_several_slices_equal_the_recurrence(form: str) -> None:
    """D_v of two slices for o, and D_k of two for d_q and d_k."""
    T = 17 if form == "chunkwise" else 3
    case = random_case((1, T, 1, 72, 40), state=True, dtype=F32)
    assert_equals_the_recurrence(case, form)
    case = random_case((1, T, 1, 17, 80), state=True, dtype=F32)
    assert_equals_the_recurrence(case, form)


@dtypes
@pytest.mark.parametrize("form", ["chunkwise", "recurrent", "segments"])
def test_errs_at_most_twice_as_much_as_the_plain_form(
    dtype: torch.dtype, form: str, request: pytest.FixtureRequest
) -> None:
    if form == "segments":
        request.getfixturevalue("short_segments")
    T = 6 if form == "recurrent" else 33
    case = masked(random_case((2, T, 2, 16, 24), state=True, dtype=dtype), valid=0.9, starts=0.02)
    exact = with_gradients(lambda c: op(c, "recurrent", None, "torch"), case.double())
    plain_form = "recurrent" if form == "recurrent" else "parallel"
    plain = with_gradients(lambda c: op(c, plain_form, None, "torch"), case)
    name = "recurrent" if form == "recurrent" else "chunkwise"
    got = with_gradients(lambda c: op(c, name, 16), case)
    for a, b, c in zip(got, plain, exact, strict=True):
        assert_within_budget(a, b, c)


def test_scores_beyond_the_range_of_float16_do_not_overflow() -> None:
    case = random_case((1, 20, 1, 16, 16), dtype=torch.float16)
    case = case._replace(q=case.q * 1e3, k=case.k * 1e3, v=case.v * 1e-3)
    exact, _ = recurrence(case.double())
    o, _ = op(case, "chunkwise", 16)
    torch.testing.assert_close(o.double(), exact, rtol=5e-3, atol=5e-3 * exact.abs().max().item())


def test_a_decay_of_e_to_the_minus_twenty_gives_no_nan() -> None:
    log_decay = torch.tensor([-20.0, 0.0])
    case = random_case((1, 40, 2, 16, 16), dtype=F32, log_decay=log_decay, state=True)
    assert_equals_the_recurrence(case, "chunkwise", 32)


def test_long_memories_decay_over_a_segment() -> None:
    """T14: rounded to float32 a decay of 1 - 2^-30 is 1, but the logarithm is not 0."""
    steps = 2**20
    log_decay = torch.log1p(-torch.tensor([2.0**-30], dtype=torch.float64))
    states = torch.zeros(1, 1, 2, 16, 16, device=DEVICE)
    triton_kernels.retention_chunkwise_combine_kernel[(1,)](
        *(states, torch.ones(1, 1, 16, 16, device=DEVICE), log_decay.to(DEVICE), None, None),
        *(2 * steps, steps, 2, 1),
        **{"SIZE": 256, "BLOCK": 1024, "MASKED": False, "REVERSE": False},
    )
    expected = (log_decay * steps).exp().item()
    assert expected < 1 - 9e-4
    assert abs(states[0, 0, 1].max().item() - expected) < 1e-7


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
@pytest.mark.parametrize("pick", [0, 1])
def test_a_gradient_of_the_outputs_or_of_the_final_state_alone(form: str, pick: int) -> None:
    """Truncated backpropagation may use the state and drop the outputs, or the other way."""
    case = random_case((1, 5, 2, 16, 16), state=True, dtype=F32)
    results = []
    for function, given in ((lambda c: op(c, form, 16), case), (recurrence, case.double())):
        leaves = [given.k.requires_grad_(), given.v.requires_grad_()]
        results.append(torch.autograd.grad(function(given)[pick].square().sum(), leaves))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)


def test_gradient_of_one_input_alone_is_the_same() -> None:
    case = random_case((1, 18, 1, 16, 16), state=True, dtype=F32)
    want = with_gradients(lambda c: op(c, "chunkwise", 16), case)
    for i, name in enumerate(("q", "k", "v", "state")):
        leaf = getattr(case, name).clone().requires_grad_()
        o, S = op(case._replace(**{name: leaf}), "chunkwise", 16)
        rng = torch.Generator().manual_seed(1)
        weights = [torch.randn(x.shape, generator=rng) for x in (o, S)]
        assert torch.equal(torch.autograd.grad((o, S), leaf, weights)[0], want[2 + i])


@pytest.mark.usefixtures("short_segments")
def test_two_runs_are_equal_in_every_bit() -> None:
    case = masked(random_case((1, 33, 2, 16, 24), state=True, dtype=torch.bfloat16))
    first, second = (with_gradients(lambda c: op(c, "chunkwise", 16), case) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_strided_inputs_give_the_same() -> None:
    case = random_case((2, 17, 2, 16, 16), state=True, dtype=F32)
    want = with_gradients(lambda c: op(c, "chunkwise", 16), case)
    order = (0, 3, 2, 1)  # the last axis with gaps, and the heads outermost
    strided = [x.permute(order).contiguous().permute(order) for x in case[:3]]
    assert case.state is not None
    strided_case = case.with_inputs(strided)._replace(state=case.state.mT.contiguous().mT)
    got = with_gradients(lambda c: op(c, "chunkwise", 16), strided_case)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_decays_with_gaps_between_them_are_read_as_they_stand(form: str) -> None:
    case = random_case((1, 5, 2, 16, 16), dtype=F32)
    wide = torch.stack((case.log_decay, torch.full_like(case.log_decay, -9.0)), 1)
    got = op(case._replace(log_decay=wide[:, 0]), form, None)
    torch.testing.assert_close(got, op(case, form, None), rtol=0, atol=0)


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
def test_a_batch_of_no_rows_gives_none(form: str) -> None:
    rows = torch.zeros(0, 5, 2, 16, device=DEVICE, requires_grad=True)
    log_decay = torch.zeros(2, device=DEVICE)
    o, S = retention(rows, rows, rows, log_decay, form=form, backend="triton")  # type: ignore[arg-type]
    assert (o.shape, S.shape) == ((0, 5, 2, 16), (0, 2, 16, 16))
    assert torch.autograd.grad(o.sum(), rows)[0].shape == rows.shape


@pytest.mark.parametrize("form", ["chunkwise", "recurrent"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_offsets_beyond_32_bits(form: str, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, tokens or heads two thousand million elements apart: memory is only touched there."""
    monkeypatch.undo()  # do not write NaN into all of it
    case = random_case((2, 3, 2, 16, 16), dtype=torch.bfloat16)
    gap = 2**31 + 64 if axis != 1 else 2**30 + 64
    strides = [2 * 3 * 16, 2 * 16, 16, 1]
    strides[axis] = gap
    size = sum((n - 1) * s for n, s in zip(case.q.shape, strides, strict=True)) + 1
    far = torch.empty(size, dtype=torch.bfloat16, device=DEVICE).as_strided(case.q.shape, strides)
    far.copy_(case.q)
    got = op(case._replace(q=far), form, 16)
    for a, b in zip(got, op(case, form, 16), strict=True):
        assert torch.equal(a, b)


def test_rows_are_cut_only_where_it_saves_time() -> None:
    cut, N = triton_backend.cut, 132
    assert cut(65_536, 256, N, 64) == (1, 65_536)  # the chip is full
    assert cut(65_536, 100, N, 64) == (1, 65_536)  # two segments would run one after the other
    assert cut(65_536, 64, N, 64) == (2, 32_768)
    assert cut(65_536, 8, N, 64).segments == 16
    assert cut(2_047, 1, N, 64) == (1, 2_048)  # too short for two segments
    assert cut(3_000, 1, N, 64) == (2, 1_536)
    for T in (1, 1_024, 5_000, 70_001):
        for programs in (1, 7, 33):
            segments, tokens = cut(T, programs, N, 64)
            assert (segments - 1) * tokens < T <= segments * tokens
            assert tokens % 64 == 0
            assert segments == 1 or tokens >= 1_024


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D_a", [1, 16, 24, 64, 65, 128, 256, 500, 512])
def test_every_width_has_tiles(dtype: torch.dtype, D_a: int) -> None:
    sizes = triton_backend.tiles(dtype, D_a, 40)
    assert sizes.columns in (16, 32, 64)
    assert sizes.chunk in (16, 32, 64)


def test_the_kernels_compile_for_an_h100_within_its_memory(tmp_path: Path) -> None:
    """The interpreter accepts what the compiler refuses; compiling needs no GPU."""
    script = Path(__file__).with_name("compile_for_h100.py")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    ran = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("backend", ["torch", "triton"])
@dtypes
def test_a_step_in_place_equals_the_op(backend: Any, dtype: torch.dtype) -> None:
    case = random_case((3, 1, 2, 24, 40), state=True, dtype=dtype)
    want_o, want_S = recurrence(case.double())
    q, k, v, log_decay, state = (x.to(DEVICE) for x in case[:5] if x is not None)
    state = state.mT.contiguous().mT  # any strides
    o = retention_step_(q, k, v, log_decay, state, backend=backend)
    limit = 1e-6 if dtype == F32 else 1e-2
    torch.testing.assert_close(o.cpu().double(), want_o, rtol=limit, atol=limit)
    torch.testing.assert_close(state.cpu().double(), want_S, rtol=1e-6, atol=1e-6)
    assert o.dtype == dtype


def test_a_step_takes_one_token() -> None:
    case = random_case((3, 2, 2, 4, 4), state=True, dtype=F32)
    assert case.state is not None
    with unchecked(), pytest.raises(ValueError, match="a step takes one token of each row"):
        retention_step_(*case[:4], case.state)


SMALL = random_case((1, 2, 1, 4, 4), dtype=F32)
WIDE = random_case((1, 2, 1, 4, 600), dtype=F32)
REFUSED = {
    "float64": (SMALL.double(), {}, "dtype torch.float64; the triton backend takes .* cast with"),
    "wide heads": (WIDE, {}, r"D_k \(4\) and D_v \(600\) must be at most 512 .* narrower heads"),
    "parallel": (SMALL, {"form": "parallel"}, "retention has no triton/parallel; choose one of"),
    "a chunk of 48": (SMALL, {"chunk_size": 48}, r"chunk_size \(48\) must be one of \[16, 32\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refuses(what: str) -> None:
    case, arguments, message = REFUSED[what]
    with pytest.raises(ValueError, match=message):
        retention(*case[:4], backend="triton", **arguments)


def test_refuses_the_cpu_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_kernels, "INTERPRETED", False)
    message = r'q is on cpu; the triton backend needs CUDA tensors: .*\.to\("cuda"\).*TRITON_INT'
    with pytest.raises(ValueError, match=message):
        retention(*SMALL[:4], backend="triton")


def test_says_how_to_install_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "HAVE_TRITON", False)
    with pytest.raises(ValueError, match=r"pip install 'retnet\[gpu\]', or use backend=\"torch\""):
        retention(*SMALL[:4], backend="triton")


class _OnGPU:
    """As much of a CUDA tensor as the choice of a backend looks at."""

    is_cuda = True
    device = torch.device("cuda")
    shape = (1, 2, 1, 4)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


def test_the_default_backend_is_triton_where_it_suits_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    capability = (9, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    backends._say.cache_clear()

    def chosen(form: str = "chunkwise", dtype: torch.dtype = torch.bfloat16) -> str:
        x: Any = _OnGPU(dtype)
        with unchecked():
            return backends.resolve(None, form, x, x)

    with caplog.at_level(logging.INFO, logger=backends.__name__):
        assert chosen() == chosen() == "triton"
    assert caplog.messages == [
        "retention: triton computes the chunkwise form of torch.bfloat16 on cuda"
    ]
    assert chosen(form="parallel") == chosen(dtype=torch.float64) == "torch"
    capability = (7, 5)
    assert chosen() == "torch"
    capability = (9, 0)
    monkeypatch.setattr(backends, "HAVE_TRITON", False)
    assert chosen() == "torch"
    with unchecked():
        assert backends.resolve(None, "chunkwise", SMALL.q, SMALL.v) == "torch"
        assert backends.resolve("torch", "chunkwise", SMALL.q, SMALL.v) == "torch"
