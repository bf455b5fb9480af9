"""Steps by a program against the float64 model."""

import logging
import pickle
import subprocess
import sys
import threading
import weakref
from copy import deepcopy
from itertools import islice
from typing import Any

import pytest
import torch

from retnet.mixers.attention import AttentionConfig
from retnet.mixers.branch import ROOM, CannotCompile
from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.lru import LRUConfig
from retnet.mixers.mean_retention import MeanRetentionConfig
from retnet.mixers.retention import RetentionConfig
from retnet.mixers.rwkv import RWKVConfig
from retnet.mixers.rwkv_channel import RWKVFFNConfig
from retnet.mixers.shifted import ShiftedGLUConfig, ShiftedRetentionConfig
from retnet.model import steps
from retnet.model.compiled_steps import MAX_ROWS
from retnet.model.config import DecoderConfig, LayerConfig
from retnet.model.decoder import Decoder
from retnet.model.decoding import Decoding, prefill
from retnet.model.sampling import Sampling
from retnet.model.state import DecoderState, concat_rows, select_rows, state_tensors
from retnet.model.steps import close_state, open_state, pack
from retnet.ops import program
from retnet.ops.rope_scaling import RoPEScaling

pytest.importorskip("numba", reason="pip install 'retnet[fast]' brings it")

pytestmark = pytest.mark.usefixtures("compiled_kernels")

BF16 = torch.bfloat16
GREEDY = Sampling(temperature=0.0)
BEFORE, STEPS = 5, 2 * ROOM + 3
SMALL = {"key_width": 8, "value_width": 8}


def step(
    model: Decoder, tokens: torch.Tensor, state: DecoderState
) -> tuple[torch.Tensor, DecoderState]:
    logits, state = model(tokens[:, None], state)
    return logits[:, 0], state


def decoder(mixer: Any = None, channel: Any = None, **fields: Any) -> Decoder:
    """Of retention with the options that `mixer` is, or of that mixer."""
    if mixer is None or isinstance(mixer, dict):
        mixer = RetentionConfig(**{"num_heads": 2, **(mixer or {})})
    layer = LayerConfig(
        mixer=mixer,
        channel=channel or GLUConfig(width=40),
        repeat=2,
    )
    torch.manual_seed(3)
    model = Decoder(DecoderConfig(**{"d_model": 24, "layers": (layer,), "vocab_size": 37} | fields))
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.2)
        elif not parameter.any():  # RWKV's begin at zero
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model.double().eval()


MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "interleaved": {"mixer": {"pairs": "interleaved", "theta": "linspace", "decay": "linspace"}},
    "nothing turns": {"mixer": {"theta": "none", "score_norm": "none", "key_width": 10}},
    "wide": {"mixer": {"key_width": 68, "value_width": 90, "num_heads": 1, "bias": True}},
    "no gate": {"mixer": {"gate": False, "head_norm": "layer", "head_norm_affine": True}},
    "no norm": {"mixer": {"head_norm": "none", "decay": "constant:1"}},
    "ffn": {"channel": FFNConfig(width=50, inner_norm=True), "norm": "layer"},
    "embeddings": {"embed_norm": True, "embed_scale": True, "tie_embeddings": True},
    "shifted": {
        "mixer": ShiftedRetentionConfig(retention=RetentionConfig(num_heads=2)),
        "channel": ShiftedGLUConfig(width=40, bias=True),
    },
    "means": {"mixer": MeanRetentionConfig(num_heads=3, decay="constant:0.9", key_width=30)},
    "means without a shift": {"mixer": MeanRetentionConfig(num_heads=2, token_shift=False)},
    "rwkv": {
        "mixer": RWKVConfig(width=28),
        "channel": RWKVFFNConfig(width=50),
        "embed_norm": True,
        "norm": "layer",
    },
    "rwkv without shifts": {
        "mixer": RWKVConfig(token_shift=False),
        "channel": RWKVFFNConfig(width=40, token_shift=False),
    },
    "attention": {"mixer": AttentionConfig(num_heads=2)},
    "attention, shared keys": {
        "mixer": AttentionConfig(num_heads=6, num_kv_heads=2, head_size=10, pairs="interleaved")
    },
    "attention, biases": {
        "mixer": AttentionConfig(num_heads=1, position="none", bias=True, head_size=7)
    },
    "attention, scaled": {
        "mixer": AttentionConfig(
            num_heads=2,
            qk_bias=True,
            scaling=RoPEScaling(kind="yarn", factor=2.0, original_len=16),
        )
    },
    "gates of sigmoids": {"channel": GLUConfig(width=40, activation="sigmoid")},
}


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_steps_equal_one_pass_of_the_float64_model(name: str) -> None:
    model = decoder(**MODELS[name])
    tokens = torch.randint(37, (3, BEFORE + STEPS), generator=torch.Generator().manual_seed(0))
    want, want_state = model(tokens)
    packed = pack(model, "float32", "numba")
    _, state = prefill(packed, tokens[:, :BEFORE])
    opened = open_state(packed, state, STEPS)
    for n in range(BEFORE, BEFORE + STEPS):
        logits, opened = step(packed, tokens[:, n], opened)
        error = (logits.double() - want[:, n]).abs().max() / want.std()
        assert error < 1e-4
    got = state_tensors(close_state(packed, opened))
    for leaf_name, leaf in state_tensors(want_state).items():
        torch.testing.assert_close(got[leaf_name].double(), leaf.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("weights", "limit"), [("bfloat16", 0.06), ("int8", 0.15)])
@pytest.mark.parametrize("batch", [1, 5, MAX_ROWS])
@torch.inference_mode()
def test_packed_kinds_stay_near_the_model(weights: Any, limit: float, batch: int) -> None:
    model = decoder()
    tokens = torch.randint(37, (batch, 40), generator=torch.Generator().manual_seed(1))
    want, _ = model(tokens)
    packed = pack(model, weights, "numba")
    _, state = prefill(packed, tokens[:, :BEFORE])
    opened = open_state(packed, state, 40)
    for n in range(BEFORE, 40):
        logits, opened = step(packed, tokens[:, n], opened)
        assert (logits.double() - want[:, n]).abs().max() / want.std() < limit


@pytest.mark.parametrize(
    ("dtype", "weights", "limit"), [(torch.float32, "float32", 1e-4), (BF16, "bfloat16", 0.06)]
)
@torch.inference_mode()
def test_caches_grow(dtype: torch.dtype, weights: Any, limit: float) -> None:
    """Beyond one tile of keys, and beyond the room that they begin with."""
    model = decoder(AttentionConfig(num_heads=4, num_kv_heads=2)).to(dtype)
    tokens = torch.randint(37, (2, 300), generator=torch.Generator().manual_seed(1))
    want, want_state = deepcopy(model).double()(tokens)
    packed = pack(model, weights, "numba")
    _, state = prefill(packed, tokens[:, :BEFORE])
    opened = open_state(packed, state, STEPS)
    for n in range(BEFORE, 300):
        logits, opened = step(packed, tokens[:, n], opened)
        assert (logits.double() - want[:, n]).abs().max() / want.std() < limit
    got = state_tensors(close_state(packed, opened))
    for name, leaf in state_tensors(want_state).items():
        if leaf.is_floating_point():
            assert got[name].dtype == dtype
            assert (got[name].double() - leaf).abs().max() / leaf.std() < limit


@pytest.mark.parametrize("name", ["plain", "attention"])
@torch.inference_mode()
def test_rows_may_stand_at_different_positions(name: str) -> None:
    model = decoder(**MODELS[name])
    packed = pack(model, "float32", "numba")
    prompts = torch.randint(37, (3, 9), generator=torch.Generator().manual_seed(2))
    valid = torch.arange(9) < torch.tensor([[9], [4], [1]])
    _, state = prefill(packed, prompts, valid=valid)
    opened, plain = open_state(packed, state, 40), state
    for n in range(ROOM + 4):
        token = torch.full((3,), n)
        got, opened = step(packed, token, opened)
        h, plain = packed.hidden(token[:, None], plain)
        torch.testing.assert_close(got, packed.head(h[:, 0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "shifted", "means", "rwkv", "attention"])
@torch.inference_mode()
def test_marks_give_the_state_of_their_place_later(name: str) -> None:
    model = pack(decoder(**MODELS[name]), "float32", "numba")
    decoding = Decoding(model, *prefill(model, torch.tensor([[1, 2, 3]])), GREEDY)
    written, marks = [], []
    for _ in range(2 * ROOM + 5):
        written.append(int(next(decoding)))
        marks.append(decoding.mark())
    for place in (1, ROOM - 1, ROOM, ROOM + 1, 2 * ROOM + 1):
        _, want = model(torch.tensor([[1, 2, 3, *written[:place]]]))
        for name, leaf in state_tensors(want).items():
            got = state_tensors(marks[place]())[name]
            torch.testing.assert_close(got, leaf, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "shifted", "means", "rwkv", "attention"])
@torch.inference_mode()
def test_rows_that_stay_are_unchanged_when_others_go(name: str) -> None:
    model = pack(decoder(**MODELS[name]), "int8", "numba")
    prompts = torch.randint(37, (3, 6), generator=torch.Generator().manual_seed(1))
    rows = Decoding(model, *prefill(model, prompts), GREEDY)
    alone = Decoding(model, *prefill(model, prompts[2:]), GREEDY)
    for _ in range(9):
        assert int(next(rows)[2]) == int(next(alone))
    rows.keep([2])
    assert [int(t) for t in islice(rows, 30)] == [int(t) for t in islice(alone, 30)]


@torch.inference_mode()
def test_two_texts_can_take_turns() -> None:
    model = pack(decoder(), "float32", "numba")
    prompts = torch.randint(37, (2, 6), generator=torch.Generator().manual_seed(4))
    want = [
        [int(t) for t in islice(Decoding(model, *prefill(model, p[None]), GREEDY), 30)]
        for p in prompts
    ]
    turns = [Decoding(model, *prefill(model, p[None]), GREEDY) for p in prompts]
    got = [[int(next(d)) for d in turns] for _ in range(30)]
    assert [list(texts) for texts in zip(*got, strict=True)] == want


@torch.inference_mode()
def test_many_rows_step_by_pytorch() -> None:
    model = pack(decoder(), "float32", "numba")
    logits, state = prefill(model, torch.tensor([[1, 2, 3]]))
    many = MAX_ROWS + 1
    opened = open_state(model, select_rows(state, [0] * many), 3)
    assert model.compiled_steps is not None
    assert not model.compiled_steps.steps(opened)
    rows = Decoding(model, logits.expand(many, -1), select_rows(state, [0] * many), GREEDY)
    one = Decoding(model, logits, state, GREEDY)
    for a, b in islice(zip(rows, one, strict=True), ROOM + 2):
        assert a.tolist() == b.tolist() * many
    rows.keep([0])  # few rows now, but opened otherwise
    assert len(list(islice(rows, 3))) == 3


def test_a_copy_of_a_packed_model_steps_too() -> None:
    model = pack(decoder(), "float32", "numba")
    again = deepcopy(model)
    for it in (model, again):
        with torch.inference_mode():
            decoding = Decoding(it, *prefill(it, torch.tensor([[1, 2, 3]])), GREEDY)
            assert len(list(islice(decoding, 20))) == 20


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (decoder({"initial_state": True}), "initial_state"),
        (decoder(residual="deepnorm"), "deepnorm"),
        (
            Decoder(
                DecoderConfig(d_model=8, layers=(LayerConfig(mixer=LRUConfig()),), vocab_size=9)
            ),
            "LRU has no instructions",
        ),
        (decoder(AttentionConfig(num_heads=2, window=4)), "attention with window = 4 has no"),
        (decoder(AttentionConfig(num_heads=2, position="alibi")), "position alibi"),
    ],
)
def test_what_has_no_instructions_is_said_and_left_to_pytorch(
    model: Decoder, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(CannotCompile, match=why):
        pack(model, "float32", "numba")
    steps._tell_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert pack(model, "float32").compiled_steps is None
    [said] = caplog.messages
    assert "computed by PyTorch" in said
    assert why in said


def _forget_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("machine", "kernels", "dots", "intrinsics"):
        monkeypatch.delitem(sys.modules, f"retnet.ops.program.{name}", raising=False)
        monkeypatch.delattr(program, name, raising=False)


def test_without_numba_pytorch_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _forget_kernels(monkeypatch)
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(CannotCompile, match=r"pip install 'retnet\[fast\]'"):
        pack(decoder(), "float32", "numba")
    steps._tell_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert pack(decoder(), "float32").compiled_steps is None
    assert "retnet[fast]" in caplog.text


def test_pytorch_can_be_asked_for() -> None:
    assert pack(decoder(), "float32", "torch").compiled_steps is None


def test_numba_is_not_imported_before_a_model_is_packed() -> None:
    code = "import sys, retnet.model; assert not {'numba', 'llvmlite'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)


def test_a_numba_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_kernels(monkeypatch)
    monkeypatch.setitem(sys.modules, "numba.extending", None)  # too old, or not for this NumPy
    with pytest.raises(CannotCompile, match=r"cannot be imported.*retnet\[fast\]"):
        pack(decoder(), "float32", "numba")


def test_a_model_whose_steps_are_compiled_is_not_pickled() -> None:
    model = pack(decoder(), "float32", "numba")
    with pytest.raises(TypeError, match="pack it where it is used"):
        pickle.dumps(model)


@torch.inference_mode()
def test_what_would_be_read_outside_of_memory_is_refused() -> None:
    model, small = (pack(decoder(mixer), "float32", "numba") for mixer in (None, SMALL))
    _, state = prefill(model, torch.tensor([[1, 2, 3]]))
    opened = open_state(model, state, 3)
    for token in (-1, 37, 1 << 40):
        with pytest.raises(IndexError, match=f"token {token} "):
            step(model, torch.tensor([token]), opened)
    with pytest.raises(ValueError, match="2 rows and the state 1"):
        step(model, torch.tensor([1, 2]), opened)
    with pytest.raises(ValueError, match="opened itself"):
        step(small, torch.tensor([1]), opened)
    want, _ = step(model, torch.tensor([1]), opened)
    got, after = step(model, torch.tensor([1], dtype=torch.int32), opened)
    assert (got == want).all()
    joined = concat_rows([after, opened])
    with pytest.raises(ValueError, match="opened together"):
        step(model, torch.tensor([1, 1]), joined)


@torch.inference_mode()
def test_threads_may_step_one_model() -> None:
    model = pack(decoder(), "float32", "numba")
    prompts = torch.randint(37, (4, 6), generator=torch.Generator().manual_seed(5))
    starts = [prefill(model, prompt[None]) for prompt in prompts]
    want = [[int(t) for t in islice(Decoding(model, *s, GREEDY), 60)] for s in starts]
    got: dict[int, list[int]] = {}

    def write(index: int) -> None:
        got[index] = [int(t) for t in islice(Decoding(model, *starts[index], GREEDY), 60)]

    before = torch.get_num_threads()
    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(4)] == want
    assert torch.get_num_threads() == before


@torch.inference_mode()
def test_only_the_newest_state_is_kept_alive() -> None:
    model = pack(decoder(), "float32", "numba")
    compiled = model.compiled_steps
    assert compiled is not None
    _, state = prefill(model, torch.tensor([[1, 2, 3]] * 3))
    opened = open_state(model, state, 3)
    kept = weakref.ref(opened.layers[0][0].leaves.S)
    _, opened = step(model, torch.tensor([1, 1, 1]), opened)
    opened = select_rows(opened, [0, 1])
    _, opened = step(model, torch.tensor([1, 1]), opened)
    assert kept() is None
