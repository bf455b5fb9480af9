from copy import deepcopy
from itertools import islice

import pytest
import torch

from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model.config import DecoderConfig, LayerConfig
from retnet.model.decoder import Decoder
from retnet.model.decoding import ROOM, Decoding, prefill
from retnet.model.sampling import Sampling
from retnet.model.state import state_tensors, with_tensors
from retnet.model.steps import close_state, open_state, pack
from retnet.ops.retention.buffered import CAPACITY

GREEDY = Sampling(temperature=0.0)


@torch.inference_mode()
def test_decoding_across_reopened_states_equals_reading_what_it_wrote(tiny_model: Decoder) -> None:
    prompt = torch.randint(256, (2, 7), generator=torch.Generator().manual_seed(0))
    logits, state = prefill(tiny_model, prompt)
    decoding = Decoding(tiny_model, logits, state, GREEDY)
    written = torch.stack(list(islice(decoding, ROOM + 40)), 1)
    want, want_state = tiny_model(torch.cat((prompt, written[:, :-1]), 1))
    assert (want[:, 6:].argmax(-1) == written).all()
    torch.testing.assert_close(decoding.logits, want[:, -1], rtol=1e-9, atol=1e-9)
    got = state_tensors(decoding.state)
    for name, leaf in state_tensors(want_state).items():
        torch.testing.assert_close(got[name], leaf, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_under_autocast_states_stay_as_exact_as_without_opened_ones(
    tiny_model: Decoder, dtype: torch.dtype
) -> None:
    model = deepcopy(tiny_model).float()
    with torch.autocast("cpu", dtype):
        logits, want = prefill(model, torch.tensor([[1, 2, 3]]))
        before = want
        decoding = Decoding(model, logits, want, GREEDY)
        for token in islice(decoding, 2 * CAPACITY + 3):
            before = want
            want = model.hidden(token[:, None], want)[1]
        state = decoding.state
    for name, leaf in state_tensors(before).items():
        got = state_tensors(state)[name]
        assert got.dtype == leaf.dtype
        if got.is_floating_point():
            assert_close = torch.testing.assert_close
            assert_close(got, leaf, rtol=0, atol=float(leaf.abs().max()) * torch.finfo(dtype).eps)


@torch.inference_mode()
def test_rows_that_share_the_memory_of_a_state_can_go_on(tiny_model: Decoder) -> None:
    logits, state = prefill(tiny_model, torch.tensor([[1, 2, 3]]))
    shared = {name: leaf.expand(3, *leaf.shape[1:]) for name, leaf in state_tensors(state).items()}
    alone = Decoding(tiny_model, logits, state, GREEDY)
    rows = Decoding(tiny_model, logits.expand(3, -1), with_tensors(state, shared), GREEDY)
    for one, three in islice(zip(alone, rows, strict=True), CAPACITY + 2):
        assert three.tolist() == one.tolist() * 3


@torch.inference_mode()
def test_a_mark_gives_the_state_of_its_place_later(tiny_model: Decoder) -> None:
    logits, state = prefill(tiny_model, torch.tensor([[1, 2, 3]]))
    decoding = Decoding(tiny_model, logits, state, GREEDY)
    written = [int(next(decoding)) for _ in range(5)]
    mark = decoding.mark()
    for _ in range(40):
        next(decoding)
    _, want = tiny_model(torch.tensor([[1, 2, 3, *written[:-1]]]))
    for name, leaf in state_tensors(want).items():
        torch.testing.assert_close(state_tensors(mark())[name], leaf, rtol=1e-9, atol=1e-9)


@torch.inference_mode()
def test_rows_that_go_on_after_others_were_dropped_are_unchanged(tiny_model: Decoder) -> None:
    prompts = torch.randint(256, (3, 6), generator=torch.Generator().manual_seed(1))
    all_rows = Decoding(tiny_model, *prefill(tiny_model, prompts), GREEDY)
    one = Decoding(tiny_model, *prefill(tiny_model, prompts[2:]), GREEDY)
    for _ in range(9):
        assert int(next(all_rows)[2]) == int(next(one))
    all_rows.keep([2])
    assert [int(t) for t in islice(all_rows, 30)] == [int(t) for t in islice(one, 30)]


@torch.inference_mode()
def test_opening_and_closing_gives_the_state_back(tiny_model: Decoder) -> None:
    _, state = prefill(tiny_model, torch.tensor([[5, 6]]))
    again = close_state(tiny_model, open_state(tiny_model, state, 10))
    for name, leaf in state_tensors(state).items():
        torch.testing.assert_close(state_tensors(again)[name], leaf, rtol=0, atol=0)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_packed_model_predicts_what_the_model_predicts(weights: str) -> None:
    layer = LayerConfig(mixer=RetentionConfig(num_heads=2), channel=GLUConfig(width=64), repeat=2)
    torch.manual_seed(0)
    config = DecoderConfig(d_model=32, layers=(layer,), vocab_size=257)
    tiny_model = Decoder(config).double().eval()
    tokens = torch.randint(256, (1, 30), generator=torch.Generator().manual_seed(2))
    packed = pack(tiny_model, weights)  # type: ignore[arg-type]
    assert tiny_model.embed_tokens.weight.dtype == torch.float64  # as it was
    with torch.inference_mode():
        want = tiny_model(tokens)[0].double()
        logits, state = packed(tokens[:, :10])
        state, outputs = open_state(packed, state, 20), [logits]
        for n in range(10, 30):
            logits, state = packed(tokens[:, n : n + 1], state)
            outputs.append(logits)
    error = (torch.cat(outputs, 1).double() - want).abs().max() / want.std()
    assert error < {"float32": 1e-5, "bfloat16": 0.06, "int8": 0.12}[weights]
    assert all(not p.requires_grad for p in packed.parameters())


@torch.inference_mode()
def test_a_packed_model_generates_from_its_own_state_dtype(tiny_model: Decoder) -> None:
    packed = pack(tiny_model, "int8")
    decoding = Decoding(packed, *prefill(packed, torch.tensor([[1, 2, 3]])), GREEDY)
    assert len(list(islice(decoding, 40))) == 40
    assert {t.dtype for t in state_tensors(decoding.state).values()} == {
        torch.float32,
        torch.int64,
    }
