"""One call of the model: documents, losses, what is kept and what is returned."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from hf.shared import load, load_body
from model.small import config, decoder, tokens
from retnet.hf import RetNetCache, RetNetDecoderConfig, RetNetDecoderForCausalLM
from retnet.model import Decoder, state_bytes


@pytest.fixture
def model(folder: Path) -> RetNetDecoderForCausalLM:
    return load(folder, dtype=torch.float64)


def test_a_position_of_zero_begins_a_document(model: RetNetDecoderForCausalLM) -> None:
    ids = tokens(1, 9)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])
    with torch.no_grad():
        packed = model(ids, position_ids=positions).logits
        apart = [model(part).logits for part in ids.split([4, 2, 3], dim=1)]
        torch.testing.assert_close(packed, torch.cat(apart, 1))
        cache = model(ids[:, :4]).past_key_values
        restarted = model(ids[:, 4:6], past_key_values=cache, position_ids=positions[:, 4:6])
    torch.testing.assert_close(restarted.logits, apart[1])


def test_positions_that_go_on_change_nothing(model: RetNetDecoderForCausalLM) -> None:
    ids = tokens(2, 6)
    with torch.no_grad():
        want = model(ids).logits
        assert model(ids, position_ids=torch.arange(6)[None]).logits.equal(want)
        cache = model(ids[:, :4]).past_key_values
        rest = model(ids[:, 4:], past_key_values=cache, position_ids=torch.arange(4, 6)[None])
    torch.testing.assert_close(rest.logits, want[:, 4:])


def test_the_loss_is_that_of_the_next_token(model: RetNetDecoderForCausalLM) -> None:
    ids = tokens(2, 7)
    labels = ids.clone()
    labels[0, 3:5] = -100
    out = model(ids, labels=labels)
    want = F.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    counted = (labels[:, 1:] != -100).sum()
    torch.testing.assert_close(out.loss.double(), want / counted, rtol=1e-6, atol=0)
    several = model(ids, labels=labels, num_items_in_batch=torch.tensor(40)).loss
    torch.testing.assert_close(several.double(), want / 40, rtol=1e-6, atol=0)
    assert model.train()(ids, labels=labels).past_key_values is None


def test_logits_are_made_where_asked(model: RetNetDecoderForCausalLM) -> None:
    ids = tokens(2, 7)
    with torch.no_grad():
        every = model(ids).logits
        torch.testing.assert_close(model(ids, logits_to_keep=2).logits, every[:, -2:])
        places = torch.tensor([0, 5])
        torch.testing.assert_close(model(ids, logits_to_keep=places).logits, every[:, places])


def test_hidden_states_and_tuples_come_as_of_other_models(
    model: RetNetDecoderForCausalLM, folder: Path
) -> None:
    ids = tokens(2, 7)
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        assert len(out.hidden_states) == model.config.num_hidden_layers + 1
        assert out.hidden_states[0].equal(model.get_input_embeddings()(ids))
        torch.testing.assert_close(model.lm_head(out.hidden_states[-1]), out.logits)
        assert model(ids, return_dict=False)[0].equal(out.logits)
        base = load_body(folder, dtype=torch.float64)
        assert base(ids).last_hidden_state.equal(out.hidden_states[-1])


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_cache_is_returned_when_asked_for(
    model: RetNetDecoderForCausalLM, use_cache: bool
) -> None:
    with torch.no_grad():
        cache = model(tokens(1, 3), use_cache=use_cache).past_key_values
    assert isinstance(cache, RetNetCache) == use_cache


def test_a_cache_never_grows_and_forks_for_nothing(model: RetNetDecoderForCausalLM) -> None:
    with torch.no_grad():
        cache = model(tokens(2, 3)).past_key_values
        size = state_bytes(cache.state)
        fork, apart = RetNetCache.of(cache.state), cache.copy()
        model(tokens(2, 40), past_key_values=cache)
        assert state_bytes(cache.state) == size
        assert (cache.get_seq_length(), fork.get_seq_length()) == (43, 3)
        step = tokens(2, 1)
        want = model(torch.cat([tokens(2, 3), step], 1)).logits[:, -1:]
        for other in (fork, apart):
            torch.testing.assert_close(model(step, past_key_values=other).logits, want)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, cache.is_initialized) == (0, -1, False)


def test_rows_of_a_cache_are_selected_and_repeated(model: RetNetDecoderForCausalLM) -> None:
    ids, step = tokens(3, 5), tokens(4, 1)
    with torch.no_grad():
        cache = model(ids).past_key_values
        cache.batch_select_indices(torch.tensor([2, 0]))
        cache.batch_repeat_interleave(2)
        assert cache.batch_size == 4
        got = model(step, past_key_values=cache).logits
        want = model(torch.cat([ids[[2, 2, 0, 0]], step], 1)).logits[:, -1:]
    torch.testing.assert_close(got, want)
    cache.crop(0)
    with pytest.raises(ValueError, match=r"crop\(-1\) must be crop\(0\): a state cannot give"):
        cache.crop(-1)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    own = decoder(config(dropout=0.1), torch.float64)
    model = RetNetDecoderForCausalLM(RetNetDecoderConfig.of(own.config)).double().train()
    model.load_state_dict(own.state_dict())
    ids = tokens(2, 9)
    gradients = []
    for again in (False, True):
        model.model.gradient_checkpointing = again
        model.zero_grad()
        torch.manual_seed(3)
        model(ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert plain.equal(checkpointed)


def test_gradients_equal_our_decoders(own: Decoder, folder: Path) -> None:
    model = load(folder).train()
    ids = tokens(2, 9)
    model(ids, labels=ids).loss.backward()
    own.zero_grad()
    logits = own.train()(ids)[0]
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    own.eval()
    for name, parameter in own.named_parameters():
        prefix = "" if name.startswith("lm_head.") else "model."
        got = model.get_parameter(prefix + name).grad
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-7)
    own.zero_grad(set_to_none=True)
