"""`generate` on the adapter: every way of decoding gives what our own decoder would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf.shared import WORDS, load
from model.small import tokens
from retnet.data import Tokenizer
from retnet.hf import RetNetCache, RetNetDecoderForCausalLM
from retnet.hub import load_checkpoint
from retnet.model import Decoder, Sampling, generate
from retnet.model.decoding import prefill

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
PAD = 0


@pytest.fixture(scope="module")
def model(folder: Path) -> RetNetDecoderForCausalLM:
    """In float64, so that what ought to be equal is, but for the last bits."""
    return load(folder, dtype=torch.float64)


@pytest.fixture(scope="module")
def exact(folder: Path) -> Decoder:
    return load_checkpoint(folder, dtype=torch.float64)[0]


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of rows of several lengths."""
    T = max(map(len, rows))
    ids, mask = torch.full((len(rows), T), PAD), torch.zeros(len(rows), T, dtype=torch.int64)
    for i, row in enumerate(rows):
        place = slice(T - len(row), T) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def ragged(lengths: tuple[int, ...] = (3, 8, 5)) -> list[Tensor]:
    return [tokens(1, n, vocab_size=250, seed=n)[0] for n in lengths]


def test_greedy_equals_our_own(
    model: RetNetDecoderForCausalLM, exact: Decoder, tokenizer: Tokenizer
) -> None:
    [[completion]] = generate(
        exact, tokenizer, [WORDS[:20]], max_tokens=8, sampling=Sampling(temperature=0.0)
    )
    ids = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(WORDS[:20])]])
    out = model.generate(ids, do_sample=False, max_new_tokens=8)
    found = [token for token in out[0, ids.shape[1] :].tolist() if token != tokenizer.bos_id]
    assert found == list(completion.tokens)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gives_the_logits_of_the_row_alone(
    model: RetNetDecoderForCausalLM, side: str
) -> None:
    rows = ragged()
    ids, mask = padded(rows, side)
    with torch.no_grad():
        logits = model(ids, attention_mask=mask).logits
        for i, row in enumerate(rows):
            torch.testing.assert_close(
                logits[i, mask[i].bool()], model(row[None]).logits[0], rtol=0, atol=1e-10
            )


def test_padding_in_the_middle_is_a_no_op_and_the_state_too(
    model: RetNetDecoderForCausalLM,
) -> None:
    ids = tokens(2, 9)
    mask = torch.ones(2, 9)
    mask[0, [0, 4, 5, 8]] = 0
    with torch.no_grad():
        holed = model(ids, attention_mask=mask)
        alone = model(ids[:1, mask[0].bool()])
        torch.testing.assert_close(holed.logits[:1, mask[0].bool()], alone.logits)
        step = torch.tensor([[7]])
        holed.past_key_values.batch_select_indices([0])
        after = [model(step, past_key_values=c.past_key_values).logits for c in (holed, alone)]
    torch.testing.assert_close(*after)


def test_left_padded_rows_generate_what_each_does_alone(model: RetNetDecoderForCausalLM) -> None:
    rows = ragged()
    ids, mask = padded(rows, "left")
    out = model.generate(ids, attention_mask=mask, **GREEDY)
    for i, row in enumerate(rows):
        assert out[i, ids.shape[1] :].equal(model.generate(row[None], **GREEDY)[0, len(row) :])


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_reading_the_prompt_in_chunks_changes_nothing(
    model: RetNetDecoderForCausalLM, chunk: int
) -> None:
    ids, mask = padded(ragged(), "left")
    whole = model.generate(ids, attention_mask=mask, **GREEDY)
    chunked = model.generate(ids, attention_mask=mask, prefill_chunk_size=chunk, **GREEDY)
    assert chunked.equal(whole)


def test_without_a_cache_the_same_is_generated(model: RetNetDecoderForCausalLM) -> None:
    ids = tokens(2, 5)
    assert model.generate(ids, use_cache=False, **GREEDY).equal(model.generate(ids, **GREEDY))


def test_sampling_draws_what_the_logits_say(model: RetNetDecoderForCausalLM) -> None:
    ids = tokens(1, 5)
    drawn = model.generate(
        ids, do_sample=True, max_new_tokens=1, num_return_sequences=500, eos_token_id=None, top_k=3
    )
    assert drawn.shape == (500, 6)
    with torch.no_grad():
        best = model(ids).logits[0, -1].softmax(-1).topk(3)
    counts = torch.bincount(drawn[:, -1], minlength=int(best.indices.max()) + 1)
    share = best.values / best.values.sum()
    assert int(counts[best.indices].sum()) == 500
    torch.testing.assert_close(counts[best.indices] / 500, share.float(), rtol=0, atol=0.1)


def test_several_sequences_of_a_prompt_differ(model: RetNetDecoderForCausalLM) -> None:
    ids, mask = padded(ragged((2, 4)), "left")
    out = model.generate(
        ids, attention_mask=mask, do_sample=True, num_return_sequences=3, max_new_tokens=8
    )
    assert out[:, :4].equal(ids.repeat_interleave(3, 0))
    assert len(out.unique(dim=0)) == 6


def test_beam_search_finds_the_best_of_all_continuations(model: RetNetDecoderForCausalLM) -> None:
    """With as many beams as tokens in the vocabulary, two steps leave nothing out."""
    ids, mask = padded(ragged((2, 4)), "left")
    V = model.config.vocab_size
    out = model.generate(
        ids, attention_mask=mask, num_beams=V, max_new_tokens=2, do_sample=False, eos_token_id=None
    )
    every = torch.arange(V)[:, None]
    with torch.no_grad():
        for row, m, got in zip(ids, mask, out, strict=True):
            row = row[m.bool()]
            text = torch.cat([row.expand(V, -1), every], 1)
            log_p = model(text).logits.log_softmax(-1)
            first, second = log_p[0, -2], log_p[:, -1]
            best = (first[:, None] + second).flatten().argmax()
            assert got[-2:].tolist() == [int(best) // V, int(best) % V]


def test_beams_of_any_number_equal_search_without_a_cache(model: RetNetDecoderForCausalLM) -> None:
    ids, mask = padded(ragged(), "left")
    how = GREEDY | {"num_beams": 3, "num_return_sequences": 2, "attention_mask": mask}
    assert model.generate(ids, **how).equal(model.generate(ids, use_cache=False, **how))


def test_vectors_in_place_of_ids_give_the_same(model: RetNetDecoderForCausalLM) -> None:
    ids, mask = padded(ragged(), "left")
    vectors = model.get_input_embeddings()(ids).detach()
    new = model.generate(inputs_embeds=vectors, attention_mask=mask, **GREEDY)
    assert new.equal(model.generate(ids, attention_mask=mask, **GREEDY)[:, ids.shape[1] :])


def test_going_on_with_a_returned_cache_equals_never_stopping(
    model: RetNetDecoderForCausalLM,
) -> None:
    ids, mask = padded(ragged(), "left")
    whole = model.generate(ids, attention_mask=mask, **(GREEDY | {"max_new_tokens": 9}))
    how = GREEDY | {"max_new_tokens": 4, "return_dict_in_generate": True}
    first = model.generate(ids, attention_mask=mask, **how)
    cache = first.past_key_values
    assert isinstance(cache, RetNetCache)
    assert cache.get_seq_length() == ids.shape[1] + 3  # the last token was drawn and not yet read
    longer = torch.cat([mask, mask.new_ones(len(mask), 4)], 1)
    how = GREEDY | {"max_new_tokens": 5, "attention_mask": longer}
    again = model.generate(first.sequences, past_key_values=cache.copy(), **how)
    assert again.equal(whole)
    # or with the tokens alone that it has not read, and the mask of all
    unread = first.sequences[:, cache.get_seq_length() :]
    new = model.generate(unread, past_key_values=cache, **how)
    assert new[:, -5:].equal(whole[:, -5:])


def test_a_cache_of_our_own_making_is_filled_and_used(
    model: RetNetDecoderForCausalLM, exact: Decoder
) -> None:
    ids = tokens(2, 6)
    cache = RetNetCache()
    out = model.generate(ids, past_key_values=cache, **GREEDY)
    assert out.equal(model.generate(ids, **GREEDY))
    assert cache.get_seq_length() == 11
    _, state = prefill(exact, out[:, :-1])
    assert cache.state is not None
    torch.testing.assert_close(cache.state.layers[0][0].S, state.layers[0][0].S)
    # and a state of retnet's serves as a cache
    given = model.generate(out, past_key_values=RetNetCache.of(state), **GREEDY)
    assert given.equal(model.generate(out, **GREEDY))


@pytest.mark.parametrize("num_new", [1, 3, 11])
def test_new_ids_alone_with_a_cache_say_what_is_missing(
    model: RetNetDecoderForCausalLM, num_new: int
) -> None:
    """With as many ids as the cache had read, `generate` would read all of them a second time."""
    cache = RetNetCache()
    model.generate(tokens(1, 6), past_key_values=cache, **GREEDY)
    message = rf"has read 11 tokens of each row, and there are {num_new}; give all ids, or the new"
    with pytest.raises(ValueError, match=message):
        model.generate(tokens(1, num_new), past_key_values=cache, **GREEDY)
    with pytest.raises(ValueError, match=message):
        model.generate(input_ids=tokens(1, num_new), past_key_values=cache, **GREEDY)


def test_no_tokens_are_refused(model: RetNetDecoderForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 0\); it must have at least one token"):
        model(tokens(2, 0))


def test_a_cache_of_keys_and_values_is_refused(model: RetNetDecoderForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"DynamicCache\) must be a retnet\.hf\.RetNetCache"):
        model.generate(tokens(1, 3), past_key_values=DynamicCache(), **GREEDY)
    with pytest.raises(ValueError, match=r'cache_implementation \("static"\) must be unset'):
        model.generate(tokens(1, 3), cache_implementation="static", **GREEDY)


def test_another_number_of_rows_than_the_caches_is_refused(
    model: RetNetDecoderForCausalLM,
) -> None:
    with torch.no_grad():
        cache = model(tokens(1, 3)).past_key_values
    with pytest.raises(ValueError, match=r"the cache has 1 rows and the batch 3; they must be eq"):
        model(tokens(3, 1), past_key_values=cache)


@pytest.mark.parametrize(
    "shape", [(2, 1, 5, 5), (5,), (2, 4), (2, 6), (1, 5)], ids=lambda s: "x".join(map(str, s))
)
def test_a_mask_that_is_not_one_flag_a_token_is_refused(
    model: RetNetDecoderForCausalLM, shape: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"attention_mask has shape .*must have 2 rows and 5 col"):
        model(tokens(2, 5), attention_mask=torch.ones(shape))


def test_ids_and_vectors_together_or_neither_are_refused(model: RetNetDecoderForCausalLM) -> None:
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_drafting_tokens_is_refused(model: RetNetDecoderForCausalLM) -> None:
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful"):
        model.generate(tokens(1, 5), prompt_lookup_num_tokens=2, **GREEDY)


def test_a_text_ends_with_bos(model: RetNetDecoderForCausalLM, tokenizer: Tokenizer) -> None:
    ids = tokens(1, 4)
    config = model.generation_config
    assert config.eos_token_id == config.pad_token_id == config.bos_token_id == tokenizer.bos_id
    free = model.generate(ids, **GREEDY)
    stop = int(free[0, 5])
    out = model.generate(ids, **(GREEDY | {"eos_token_id": stop, "pad_token_id": PAD}))
    assert out[0].tolist() == free[0, : free[0, 4:].tolist().index(stop) + 5].tolist()
