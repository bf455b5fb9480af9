"""The Llamas: two programs, one model; and our own decoder with attention, as large."""

import sys

import pytest
import torch

from retnet.bench.gates import gate_size
from retnet.bench.peers import PeerMissing, attention, llama_cpp, llama_transformers
from retnet.bench.peers.roles import Speaker
from retnet.bench.sizes import MEDIUM, SMALL, TINY, ModelSize
from retnet.model import Decoder
from retnet.ops.packed_linear import Weights


@pytest.fixture
def _llama_cpp() -> None:
    for module in ("llama_cpp", "gguf"):
        pytest.importorskip(module, reason=llama_cpp.INSTALL)


@pytest.mark.parametrize("size", [SMALL, MEDIUM, TINY], ids=lambda size: size.name)
def test_attention_decoders_are_as_large_as_ours(size: ModelSize) -> None:
    configs = size.config(), size.attention_config()
    with torch.device("meta"):
        ours, theirs = (Decoder(config).num_parameters() for config in configs)
    gate_size(ours, {"attention": theirs}).require()


def test_the_models_have_the_sizes_that_they_are_known_by() -> None:
    with torch.device("meta"):
        small, medium = (Decoder(size.config()).num_parameters() for size in (SMALL, MEDIUM))
    assert (small, medium) == (16_781_824, 52_700_928)


def test_a_model_of_another_size_is_refused() -> None:
    gate = gate_size(1000, {"one": 1009, "other": 1011})
    assert not gate.passed
    assert gate.why == "parameters differ by more than 1 % from our 1,000: {'other': 1011}"


def test_llama_of_transformers_has_our_attention_decoders_parameters() -> None:
    pytest.importorskip("transformers", reason=llama_transformers.INSTALL)
    theirs = llama_transformers.trainee(TINY).model
    ours = Decoder(TINY.attention_config())
    assert sum(p.numel() for p in theirs.parameters()) == ours.num_parameters()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama_of_transformers_reads_its_whole_static_cache(dtype: torch.dtype) -> None:
    pytest.importorskip("transformers", reason=llama_transformers.INSTALL)
    goes_on(llama_transformers.speaker(TINY, dtype), context=40)


def goes_on(speaker: Speaker, context: int) -> None:
    """Rows of one text go on alike, finite, after as many bytes as attention must keep."""
    width = 4 if speaker.dtype == "float32" else 2
    for rows in (1, 3):
        opened = speaker.open(context, rows, 6)
        tokens = torch.stack([next(opened.steps) for _ in range(6)])
        assert tokens.shape == (6, rows)
        assert (tokens == tokens[:, :1]).all()
        assert opened.steps.logits.isfinite().all()
        cache = 2 * TINY.num_layers * TINY.d_model * width * context * rows
        assert 0 <= opened.kept_bytes - cache <= 8 * rows  # ours counts the position too


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_attention_goes_on_from_a_filled_cache(dtype: torch.dtype) -> None:
    goes_on(attention.speaker(TINY, dtype), context=40)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_our_attention_goes_on_by_compiled_steps(weights: Weights) -> None:
    pytest.importorskip("numba", reason=attention.INSTALL)
    speaker = attention.compiled_speaker(TINY, weights)
    goes_on(speaker, context=40)
    assert speaker.by == attention.BY_NUMBA


@pytest.mark.usefixtures("_llama_cpp")
def test_llama_cpp_has_our_attention_decoders_parameters_and_goes_on() -> None:
    speaker = llama_cpp.speaker(TINY, longest=130, rows=3)
    assert speaker.parameters == Decoder(TINY.attention_config()).num_parameters()
    goes_on(speaker, context=40)
    goes_on(speaker, context=90)


@pytest.mark.usefixtures("_llama_cpp")
def test_llama_cpp_rows_compute_what_one_row_does() -> None:
    speaker = llama_cpp.speaker(TINY, longest=100, rows=3)
    logits = []
    for rows in (1, 3):
        steps = speaker.open(60, rows, 6).steps
        for _ in range(6):
            next(steps)
        logits.append(steps.logits)
    torch.testing.assert_close(logits[0].expand(3, -1), logits[1], rtol=0, atol=1e-2)


@pytest.mark.usefixtures("_llama_cpp")
def test_llama_cpp_forked_rows_have_caches_of_their_own() -> None:
    """A row that was given other tokens goes its own way."""
    model = llama_cpp._Model(TINY)
    model.reserve(256, 2)
    model.extend(list(range(20)))
    model.fork(2)
    first = model.step([1, 2], 20)
    assert not torch.equal(first[0], first[1])
    second = model.step([3, 3], 21)
    assert not torch.equal(second[0], second[1])


def test_missing_llama_cpp_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(PeerMissing, match=r"retnet\[peers\]"):
        llama_cpp.speaker(TINY, 10, 1)


@pytest.mark.usefixtures("_llama_cpp")
def test_llama_cpp_prefill_gives_the_next_tokens_logits() -> None:
    prefiller = llama_cpp.prefiller(TINY)
    tokens = torch.arange(50)[None] % TINY.vocab_size
    logits = prefiller.read(tokens)
    assert logits.shape == (TINY.vocab_size,)
    torch.testing.assert_close(prefiller.read(tokens), logits)
    assert not torch.equal(prefiller.read(tokens[:, :-1]), logits)
