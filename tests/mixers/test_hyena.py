"""What Hyena promises beyond the contract of all branches."""

import pytest
import torch
from torch import Tensor

from golden_files import golden
from mixers.cases import D, build
from retnet.mixers.hyena import Hyena, HyenaConfig
from retnet.mixers.hyena_filter import HyenaFilter
from retnet.ops import Layout
from retnet.types import FormChoice

FORMS: tuple[FormChoice, ...] = ("auto", "parallel", "chunkwise", "recurrent")
DTYPES = (torch.float64, torch.float32)
FILES = ("hyena", "hyena_order3")

NAMES = {
    "out_proj.weight": "o_proj.weight",
    "out_proj.bias": "o_proj.bias",
    "short_filter.weight": "short",
    "short_filter.bias": "short_bias",
    "filter_fn.bias": "skip",
    "filter_fn.pos_emb.z": "filter.positions",
    "filter_fn.implicit_filter.0.weight": "filter.in_weight",
    "filter_fn.implicit_filter.0.bias": "filter.in_bias",
    "filter_fn.implicit_filter.1.freq": "filter.frequency",
    "filter_fn.implicit_filter.6.weight": "filter.out_weight",
}
INNER = "filter_fn.implicit_filter.{}.{}"


def reference(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> Hyena:
    """Ours with the weights of the reference implementation, and its float32 tables of decay."""
    given, weights = golden(name).config, golden(name).weights()
    fields = {key: given[key] for key in ("l_max", "order", "filter_order", "emb_dim")}
    module = HyenaConfig(**fields).build(given["d_model"])
    t, deltas = weights.pop("filter_fn.pos_emb.t"), weights.pop("filter_fn.modulation.deltas")
    window = torch.exp(-t[0].to(dtype) * deltas[0].abs().to(dtype))
    monkeypatch.setattr(HyenaFilter, "window", lambda _, taps: window[:taps])
    weights["short_filter.weight"] = weights["short_filter.weight"][:, 0]
    weights["filter_fn.pos_emb.z"] = weights["filter_fn.pos_emb.z"][0]
    frequencies = [weights.pop(f"filter_fn.implicit_filter.{i}.freq")[0] for i in (1, 3, 5)]
    assert all(torch.equal(frequencies[0], other) for other in frequencies)
    for key in ("weight", "bias"):
        inner = torch.stack([weights.pop(INNER.format(i, key)) for i in (2, 4)])
        weights[f"filter.inner_{key}"] = inner
    weights["filter.frequency"] = frequencies[0]
    module.load_state_dict({NAMES.get(key, key): x for key, x in weights.items()})
    return module.to(dtype)


def text(B: int, T: int) -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_every_form_is_the_reference_implementation(
    name: str, dtype: torch.dtype, form: FormChoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, module = golden(name), reference(name, dtype, monkeypatch)
    x = file.arrays["in.x"].to(dtype)
    T = x.shape[1]
    y, _ = module(x, None, Layout.of(*x.shape[:2]), form)
    file.assert_agrees(y, "y")
    file.assert_agrees(module.filter(T), "filter")
    outputs, state = [], None
    for t in range(T):
        layout = Layout.of(2, 1, position=torch.full((2,), t))
        y, state = module(x[:, t : t + 1], state, layout, form)
        outputs.append(y)
    file.assert_agrees(torch.cat(outputs, 1), "y")


@pytest.mark.parametrize("name", FILES)
def test_a_filter_begins_as_the_reference_implementation(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions and decays, which training moves and the file has in float32."""
    given = golden(name).config
    fresh = HyenaFilter(given["d_model"] * (given["order"] - 1), given["l_max"], 16, 3)
    fresh.reset(1.0)
    window = fresh.window(given["l_max"])
    theirs = reference(name, torch.float32, monkeypatch).filter
    torch.testing.assert_close(fresh.positions, theirs.positions, rtol=0, atol=1e-6)
    torch.testing.assert_close(window, theirs.window(given["l_max"]), rtol=1e-5, atol=1e-6)
    assert torch.equal(fresh.frequency, torch.ones(16))


def test_the_response_to_an_impulse_is_the_filter() -> None:
    module = build("hyena", {"l_max": 20, "filter_order": 6})
    assert isinstance(module, Hyena)
    u = torch.zeros(1, 20, 3 * D, dtype=torch.float64)
    with torch.no_grad():
        module.short.zero_()
        module.short[:, 2] = 1
        module.short_bias.zero_()
    u[..., : 2 * D] = 1  # open gates
    u[:, 0, 2 * D :] = 1
    for form in FORMS:
        y, _ = module.mix(u, kernel=module.kernel(20), form=form)
        want = module.filter(20)
        want[0] += module.skip
        torch.testing.assert_close(y[0], want)


@pytest.mark.parametrize("form", FORMS)
def test_a_document_of_all_taps_is_as_good_as_shorter_ones(form: FormChoice) -> None:
    """Prefix consistency up to l_max: no length is known but the filter's own."""
    module, x = build("hyena", {"l_max": 16, "order": 3}), text(2, 16)
    y, _ = module(x, None, Layout.of(2, 16), form)
    for T in (1, 2, 7, 15):
        torch.testing.assert_close(module(x[:, :T], None, Layout.of(2, T), form)[0], y[:, :T])


@pytest.mark.parametrize("form", FORMS)
def test_a_longer_document_is_an_error_not_a_shorter_answer(form: FormChoice) -> None:
    module, x = build("hyena", {"l_max": 6}), text(2, 8)
    message = r"a document would have {} tokens; Hyena's filters have l_max \(6\) taps and nothing"
    with pytest.raises(ValueError, match=message.format(7)):
        module(x[:, :7], None, Layout.of(2, 7), form)
    _, state = module(x[:, :6], None, Layout.of(2, 6), form)
    with pytest.raises(ValueError, match=message.format(7)):
        module(x[:, 6:7], state, Layout.of(2, 1, position=torch.full((2,), 6)), form)
    with pytest.raises(ValueError, match=message.format(8)):
        module(x[:, 6:], state, Layout.of(2, 2, position=torch.full((2,), 6)), form)


@pytest.mark.parametrize("form", FORMS)
def test_padding_and_new_documents_do_not_count_towards_the_limit(form: FormChoice) -> None:
    module, x = build("hyena", {"l_max": 6}), text(2, 9)
    valid = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 0], [1, 0, 0, 1, 1, 1, 1, 0, 1]]).bool()
    y, _ = module(x, None, Layout.of(2, 9, valid=valid), form)
    for b in range(2):
        alone, _ = module(x[b : b + 1, valid[b]], None, Layout.of(1, 6), form)
        torch.testing.assert_close(y[b : b + 1, valid[b]], alone)
    starts = torch.zeros(2, 9, dtype=torch.bool)
    starts[:, 5] = True
    y, state = module(x, None, Layout.of(2, 9, starts=starts), form)
    assert state.z.shape[1] == 4
    torch.testing.assert_close(y[:, 5:], module(x[:, 5:], None, Layout.of(2, 4), form)[0])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("new", [1, 3])
def test_rows_that_have_read_more_or_less_go_on_together(form: FormChoice, new: int) -> None:
    module, x = build("hyena", {"l_max": 12, "order": 3}), text(3, 9)
    lengths = torch.tensor([2, 6, 0])
    _, state = module(x[:, :6], None, Layout.from_lengths(lengths, 6), form)
    assert state.z.shape[1] == 6
    layout = Layout.of(3, new, position=lengths)
    y, after = module(x[:, 6 : 6 + new], state, layout, form)
    assert after.z.shape[1] == 6 + new
    for b, length in enumerate(lengths.tolist()):
        row = torch.cat([x[b : b + 1, :length], x[b : b + 1, 6 : 6 + new]], 1)
        alone, state_alone = module(row, None, Layout.of(1, length + new), form)
        torch.testing.assert_close(y[b : b + 1], alone[:, -new:])
        torch.testing.assert_close(after.z[b : b + 1, : length + new], state_alone.z)
        assert not after.z[b, length + new :].any()
        torch.testing.assert_close(after.u[b : b + 1], state_alone.u)


@pytest.mark.parametrize("order", [2, 3])
def test_a_state_has_order_less_one_vectors_for_each_token(order: int) -> None:
    module = build("hyena", {"l_max": 30, "order": order})
    assert isinstance(module, Hyena)
    fixed = 2 * (order + 1) * D
    for T in (1, 2, 30):
        _, state = module(text(1, T), None, Layout.of(1, T))
        numbers = sum(leaf.numel() for leaf in state)
        assert numbers == module.state_size(T) == fixed + T * (order - 1) * D


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.no_grad()
def test_half_precision_keeps_its_filter_and_its_state_in_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = HyenaConfig(l_max=300).build(D), text(2, 20)
    whole = module.filter(300)
    exact, _ = module.double()(x, None, Layout.of(2, 20))
    y, state = module.float().to(dtype)(x.to(dtype), None, Layout.of(2, 20))
    assert isinstance(module, Hyena)
    assert y.dtype == dtype
    assert all(leaf.dtype == torch.float32 for leaf in (*state, *module.filter.parameters()))
    torch.testing.assert_close(module.filter(300), whole)
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ValueError, match=r"l_max \(1\) must be at least 2"):
        HyenaConfig(l_max=1)
    with pytest.raises(ValueError, match=r"order \(1\) must be at least 2"):
        HyenaConfig(order=1)
    with pytest.raises(ValueError, match=r"filter_order \(0\) must be at least 1"):
        HyenaConfig(filter_order=0)
    for emb_dim in (1, 4):
        with pytest.raises(ValueError, match=rf"emb_dim \({emb_dim}\) must be odd and at least 3"):
            HyenaConfig(emb_dim=emb_dim)
