"""Recorded decode steps: their bookkeeping, with a stand-in for CUDA that calls the step again."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from retnet.model import Decoder, DecoderConfig, DecoderState, LayerConfig, copy_state, preset
from retnet.model.cuda_graph import WARM_UPS, GraphedDecoder, cuda_capture
from retnet.model.decoding import prefill
from retnet.model.rivals import rival
from retnet.model.state import state_tensors
from retnet.model.steps import open_state
from retnet.ops.retention.buffered import CAPACITY

PROMPTS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def again(step: Callable[[], object]) -> Callable[[], object]:
    """As `cuda_capture`, but to replay is to call again."""
    for _ in range(WARM_UPS):
        step()
    return step


@pytest.fixture
def model() -> Decoder:
    return Decoder(preset("small-1m", vocab_size=40)).eval()


def eager(model: Decoder, logits: Tensor, state: DecoderState, steps: int) -> list[Tensor]:
    found = []
    with torch.inference_mode():
        for _ in range(steps):
            out, state = model(logits.argmax(-1)[:, None], state)
            logits = out[:, -1]
            found.append(logits)
    return found


def graphed_steps(graphed: GraphedDecoder, logits: Tensor, steps: int) -> list[Tensor]:
    found = []
    for _ in range(steps):
        logits = graphed(logits.argmax(-1)).clone()
        found.append(logits)
    return found


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_recorded_steps_continue_what_was_loaded(model: Decoder) -> None:
    logits, state = prefill(model, PROMPTS)
    graphed = GraphedDecoder(model, copy_state(state), again)
    for _ in range(2):  # loading begins anew
        graphed.load(state)
        assert_same(graphed_steps(graphed, logits, 5), eager(model, logits, state, 5))
        assert graphed.state.position.tolist() == [8, 8]


def test_a_recording_keeps_its_tensors_and_leaves_the_loaded_ones(model: Decoder) -> None:
    logits, state = prefill(model, PROMPTS)
    before = copy_state(state)
    graphed = GraphedDecoder(model, copy_state(state), again)
    graphed.load(state)
    places = {name: t.data_ptr() for name, t in state_tensors(graphed.state).items()}
    graphed_steps(graphed, logits, 3)
    assert {n: t.data_ptr() for n, t in state_tensors(graphed.state).items()} == places
    for name, tensor in state_tensors(state).items():
        assert torch.equal(tensor, state_tensors(before)[name])


class Buffer(NamedTuple):
    """Up to three tokens and the sum of those before them."""

    total: Tensor
    recent: Tensor


class Summing(nn.Module):
    """A branch whose state grows for three tokens and is then emptied into its sum."""

    def reset_parameters(self, gain: float, depth: Any = None) -> None:
        pass

    def forward(self, x: Tensor, state: Buffer | None, *_: Any) -> tuple[Tensor, Buffer]:
        if state is None:
            state = Buffer(torch.zeros_like(x[:, 0]), x[:, :0])
        recent = torch.cat((state.recent, x), 1)
        y = (state.total + recent.sum(1))[:, None]
        if recent.shape[1] == 3:
            return y, Buffer(y[:, 0], x[:, :1] if self.keeps_one else x[:, :0])
        return y, Buffer(state.total, recent)

    keeps_one = False


class SummingConfig:
    def build(self, _: int) -> Summing:
        return Summing()


@pytest.mark.parametrize("keeps_one", [False, True])
def test_a_state_that_fills_up_and_is_emptied_goes_round(keeps_one: bool) -> None:
    layer = LayerConfig(mixer=SummingConfig())  # type: ignore[arg-type]
    model = Decoder(DecoderConfig(d_model=6, layers=(layer,), vocab_size=9)).eval()
    for module in model.modules():
        if isinstance(module, Summing):
            module.keeps_one = keeps_one  # then the first state never comes back, the next does
    with torch.inference_mode():
        logits, state = model(PROMPTS[:, :1])
    state = state._replace(layers=((Buffer(state.layers[0][0].total, torch.zeros(2, 0, 6)),),))
    graphed = GraphedDecoder(model, copy_state(state), again)
    for _ in range(2):
        graphed.load(state)
        want = eager(model, logits[:, -1], state, 11)
        assert_same(graphed_steps(graphed, logits[:, -1], 11), want)


class Cache(NamedTuple):
    """Tokens in slots, the one of position p in slot p."""

    x: Tensor


class Caching(nn.Module):
    """A branch that sums what its cache holds up to the rows' positions."""

    def reset_parameters(self, gain: float, depth: Any = None) -> None:
        pass

    def forward(self, x: Tensor, state: Cache, layout: Any, _: Any) -> tuple[Tensor, Cache]:
        at = layout.positions[:, 0]
        state.x[torch.arange(2), at] = x[:, 0]
        seen = torch.arange(state.x.shape[1]) <= at[:, None]
        return (state.x * seen[..., None]).sum(1, keepdim=True), Cache(state.x)


class CachingConfig:
    def build(self, _: int) -> Caching:
        return Caching()


def test_a_cache_that_is_changed_in_place_is_not_copied() -> None:
    layer = LayerConfig(mixer=CachingConfig())  # type: ignore[arg-type]
    model = Decoder(DecoderConfig(d_model=6, layers=(layer,), vocab_size=9)).eval()
    start = DecoderState(torch.zeros(2, dtype=torch.int64), ((Cache(torch.zeros(2, 20, 6)),),))
    with torch.inference_mode():
        _, start = model(PROMPTS[:, :1], start)
    recorded, logits = copy_state(start), torch.randn(2, 9)
    want = eager(model, logits, copy_state(start), 11)
    graphed = GraphedDecoder(model, recorded, again)
    assert graphed.state.layers[0][0].x is recorded.layers[0][0].x
    for _ in range(2):
        graphed.load(start)
        assert_same(graphed_steps(graphed, logits, 11), want)
    assert graphed.state.layers[0][0].x is recorded.layers[0][0].x


def test_a_state_that_grows_for_ever_is_refused() -> None:
    class Growing(Summing):
        def forward(self, x: Tensor, state: Buffer | None, *_: Any) -> tuple[Tensor, Buffer]:
            past = x[:, :0] if state is None else state.recent
            return x, Buffer(x[:, 0], torch.cat((past, x), 1))

    class GrowingConfig:
        def build(self, _: int) -> Growing:
            return Growing()

    layer = LayerConfig(mixer=GrowingConfig())  # type: ignore[arg-type]
    model = Decoder(DecoderConfig(d_model=6, layers=(layer,), vocab_size=9)).eval()
    with torch.inference_mode():
        _, state = model(PROMPTS[:, :1])
    with pytest.raises(ValueError, match="it grows, and a graph cannot"):
        GraphedDecoder(model, state, again)


def test_other_batches_and_training_are_refused(model: Decoder) -> None:
    logits, state = prefill(model, PROMPTS)
    graphed = GraphedDecoder(model, copy_state(state), again)
    with pytest.raises(ValueError, match="recorded for one token of each of 2 rows"):
        graphed(logits[:1].argmax(-1))
    with pytest.raises(ValueError, match="not of the shapes that were recorded"):
        graphed.load(prefill(model, PROMPTS[:1])[1])
    with pytest.raises(ValueError, match="in training mode"):
        GraphedDecoder(model.train(), state, again)


def test_without_a_gpu_there_are_no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="a CUDA graph needs a CUDA device"):
        cuda_capture(lambda: None)


class OnOneDevice(TorchDispatchMode):
    """Refuses what a recording cannot hold: operations on tensors of two devices, and copies."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        devices = {t.device.type for t in tensors if t.ndim or t.device.type != "cpu"}
        assert len(devices) <= 1, f"{function} has tensors on {devices}"
        return out


@pytest.mark.parametrize(
    ("name", "opened"),
    [("small-1m", False), ("small-1m", True), ("paper-200m", True), ("attention", True)],
)
def test_a_step_takes_nothing_from_another_device(
    name: str, opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device without memory stands for a GPU: it refuses looks at values too."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # it knows no autocast
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    config = preset("small-1m" if name == "attention" else name, vocab_size=40)
    config = replace(config, layers=(replace(config.layers[0], repeat=1),))
    if name == "attention":
        config = rival(config, "attention")
    with torch.device("meta"), torch.inference_mode():
        model = Decoder(config).eval()
        tokens = torch.zeros(2, 1, dtype=torch.int64)
        _, state = model(tokens)
        state = open_state(model, state, 40) if opened else state
        for _ in range(CAPACITY + 2):  # once for what is made only once
            _, state = model(tokens, state)
        with OnOneDevice():
            for _ in range(CAPACITY + 2):
                _, state = model(tokens, state)
