import importlib.metadata
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from retnet.bench.peers import PeerMissing, torchscale
from retnet.bench.sizes import ModelSize

SMALL = ModelSize(
    name="of this test",
    d_model=8,
    value_width=12,
    num_heads=2,
    ffn_width=10,
    num_layers=2,
    vocab_size=11,
)


def build_op() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return torchscale.chunkwise_retention(
        torch.tensor([-0.5, -0.1]), key_width=4, value_width=6, chunk_size=4, dtype=torch.float32
    )


def build_decoder() -> torch.nn.Module:
    return torchscale.decoder(SMALL, chunk_size=4)


@pytest.fixture
def fake_torchscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package with torchscale's layout; yields its empty `retnet.py`."""
    architecture = tmp_path / "torchscale" / "architecture"
    architecture.mkdir(parents=True)
    for init in (architecture.parent / "__init__.py", architecture / "__init__.py"):
        init.write_text("")
    (architecture / "config.py").write_text("def RetNetConfig(**settings): return settings\n")
    real = {name: sys.modules.pop(name) for name in loaded("torchscale")}
    monkeypatch.syspath_prepend(tmp_path)
    yield architecture / "retnet.py"
    for name in loaded("torchscale"):
        del sys.modules[name]
    sys.modules.update(real)


def loaded(*packages: str) -> set[str]:
    return {name for name in sys.modules if name.split(".")[0] in packages}


@pytest.fixture
def _installed() -> None:
    pytest.importorskip("torchscale", reason=f"torchscale is not installed: {torchscale.INSTALL}")


@pytest.mark.parametrize("build", [build_op, build_decoder])
def test_missing_torchscale_says_how_to_install_it(
    build: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchscale", None)
    with pytest.raises(PeerMissing, match="torchscale is not installed") as caught:
        build()
    assert caught.value.install == "pip install --no-deps torchscale==0.3.0"
    assert caught.value.install in str(caught.value)
    assert caught.value.peer == "torchscale"


def test_missing_torchscale_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(PeerMissing, match="pip install"):
        torchscale.version()


def test_torchscale_that_needs_another_module_is_named_with_it(fake_torchscale: Path) -> None:
    fake_torchscale.write_text("import a_module_nobody_has\n")
    with pytest.raises(PeerMissing, match="lacks the module a_module_nobody_has"):
        build_decoder()


def test_torchscale_needs_neither_fairscale_nor_timm(fake_torchscale: Path) -> None:
    fake_torchscale.write_text(
        "from fairscale.nn import checkpoint_wrapper, wrap\n"
        "from timm.models.layers import drop_path\n"
        "def RetNetDecoder(settings, embed_tokens): return drop_path(embed_tokens)\n"
    )
    before = loaded("fairscale", "timm")
    with pytest.raises(RuntimeError, match="without fairscale and timm"):
        build_decoder()  # the stand-in loads, and refuses to be called
    assert loaded("fairscale", "timm") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_heads": 3}, r"d_model \(8\) must be a multiple of twice num_heads \(3\)"),
        ({"value_width": 13}, r"value_width \(13\) must be a multiple of num_heads \(2\)"),
    ],
)
def test_torchscale_decoder_refuses_widths_that_heads_do_not_divide(
    changed: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        torchscale.decoder(replace(SMALL, **changed))


def documented_formula(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, size: int) -> Tensor:
    """The docstring of `chunkwise_retention`, token by token."""
    decay = log_decay.exp()[:, None]  # H 1
    back = torch.arange(size, dtype=q.dtype)
    powers = decay**back  # H C
    S = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    u = torch.ones(())
    rows = []
    for n in range(q.shape[1]):
        i = n % size
        if i == 0:
            u = (S / powers.sum(1)[:, None, None]).abs().sum(2).amax(2).clamp(min=1)  # B H
        S = decay[..., None] * S + k[:, n, :, :, None] * v[:, n, :, None, :]
        o = torch.einsum("bhk,bhkv->bhv", q[:, n], S)
        c = powers[:, : i + 1].sum(1).sqrt()
        scores = torch.einsum("bhk,bjhk->bhj", q[:, n], k[:, n - i : n + 1]).abs()
        r = ((scores * powers[:, : i + 1].flip(1)).sum(2) / c).clamp(min=1)
        rows.append(o / (c * torch.maximum(r, u))[..., None])
    return torch.stack(rows, 1)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("size", [1, 4, 12])
@pytest.mark.parametrize("amplitude", [0.1, 1.0, 5.0])
def test_torchscale_retention_is_its_documented_formula(amplitude: float, size: int) -> None:
    torch.manual_seed(0)
    q, k = amplitude * torch.randn(2, 2, 12, 3, 4, dtype=torch.float64)
    v = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    log_decay = torch.tensor([0.0, -0.03, -1.0], dtype=torch.float64)
    op = torchscale.chunkwise_retention(
        log_decay, key_width=4, value_width=5, chunk_size=size, dtype=torch.float64
    )
    got = op(q, k, v)
    assert got.shape == (2, 12 // size, size, 3, 5)
    torch.testing.assert_close(
        got.flatten(1, 2), documented_formula(q, k, v, log_decay, size), rtol=1e-12, atol=1e-12
    )


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchscale_retention_has_gradients_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    op = torchscale.chunkwise_retention(
        torch.tensor([-0.03, -0.01]), key_width=4, value_width=6, chunk_size=4, dtype=dtype
    )
    assert torch.equal(torch.get_rng_state(), state)  # the peer leaves our random numbers alone
    q, k = torch.randn(2, 1, 8, 2, 4, dtype=dtype).requires_grad_().unbind()
    v = torch.randn(1, 8, 2, 6, dtype=dtype, requires_grad=True)
    o = op(q, k, v)
    grads = torch.autograd.grad(o.sum(), (q, k, v))
    assert {o.dtype, *(g.dtype for g in grads)} == {dtype}
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in grads)


@pytest.mark.usefixtures("_installed")
def test_torchscale_retention_refuses_a_broken_chunk() -> None:
    q, v = torch.zeros(1, 6, 2, 4), torch.zeros(1, 6, 2, 6)
    with pytest.raises(ValueError, match=r"T \(6\) must be a multiple of chunk_size \(4\)"):
        build_op()(q, q, v)


@pytest.mark.usefixtures("_installed")
def test_torchscale_decoder_runs_the_op_that_we_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = build_decoder()
    retention = model.get_submodule("layers.0.retention")
    official: Callable[..., Tensor] = getattr(retention, "chunk_recurrent_forward")  # noqa: B009
    seen: list[tuple[Tensor, ...]] = []

    def spy(q: Tensor, k: Tensor, v: Tensor, tables: tuple[Tensor, ...]) -> Tensor:
        seen.append((q, k, v, official(q, k, v, tables)))
        return seen[-1][-1]

    monkeypatch.setattr(retention, "chunk_recurrent_forward", spy)
    model(torch.randint(0, 11, (2, 8)))
    ((q, k, v, o),) = seen
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.unflatten(2, (2, 6))
    assert q.is_contiguous()  # so that views of (B, T, H, D_k) are what it really gets
    op = torchscale.chunkwise_retention(
        torch.log1p(-torch.tensor([2.0**-5, 2.0**-6])),
        key_width=4,
        value_width=6,
        chunk_size=4,
        dtype=torch.float32,
    )
    torch.testing.assert_close(op(q, k, v), o)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("autocast", [False, True])
def test_torchscale_decoder_trains_at_any_length(autocast: bool) -> None:
    torch.manual_seed(0)
    model = build_decoder()
    tokens = torch.randint(0, 11, (2, 7))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(tokens)[0]
    assert logits.shape == (2, 7, 11)
    assert logits.dtype == (torch.bfloat16 if autocast else torch.float32)
    logits.float().logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.usefixtures("_installed")
def test_torchscale_decoder_has_the_parameters_of_its_formula() -> None:
    D, V, F = SMALL.d_model, SMALL.value_width, SMALL.ffn_width
    layer = 2 * D * D + 3 * D * V + 3 * D * F + 2 * D
    total = 2 * layer + D + SMALL.vocab_size * D  # the head is tied
    assert sum(p.numel() for p in build_decoder().parameters()) == total


@pytest.mark.usefixtures("_installed")
def test_torchscale_version_is_the_installed_one() -> None:
    assert torchscale.version() == importlib.metadata.version("torchscale")


@pytest.mark.usefixtures("_installed")
def test_torchscale_speaker_steps_as_its_own_decoder_from_its_own_state() -> None:
    """Our filled state has the names and shapes of those that it makes itself."""
    speaker = torchscale.speaker(SMALL, torch.float32)
    opened = speaker.open(9, 3, 4)
    tokens = [next(opened.steps) for _ in range(4)]
    assert {token.shape for token in tokens} == {(3,)}
    assert opened.steps.logits.isfinite().all()
    own: dict = {}
    model = torchscale.decoder(SMALL)
    for length in (1, 2):
        model(torch.zeros(3, length, dtype=torch.int64), incremental_state=own)
    state_bytes = sum(own[layer]["prev_key_value"].nbytes for layer in range(SMALL.num_layers))
    assert opened.kept_bytes == state_bytes
