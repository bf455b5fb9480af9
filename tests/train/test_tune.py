"""Fine-tuning: what learns, what is saved, and that both are only what they should be."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import retnet
from retnet.data import Tokenizer
from retnet.hub import from_dict, save_checkpoint, to_dict
from retnet.hub.adapter import AdapterInfo
from retnet.model import Decoder, DecoderConfig
from retnet.model.scoring import score
from retnet.train.tune import (
    TuneSection,
    expand_base,
    learned_parameters,
    refuse_other_base,
    save_learned,
    starting_model,
)

LAYER = {
    "repeat": 2,
    "mixer": {"name": "retention", "num_heads": 2},
    "channel": {"name": "glu", "width": 24},
}
CONFIG = from_dict(DecoderConfig, {"d_model": 16, "layers": [LAYER], "vocab_size": 257})
METHODS = ("full", "lora", "state")
TEXT = "the state of a retention layer decays"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a base that knows nothing yet of any text."""
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "base", Decoder(CONFIG), Tokenizer.bytes())
    return tmp_path


def begin(root: Path, **section: Any) -> tuple[Decoder, AdapterInfo | None]:
    tune = TuneSection(base="base", **section)
    torch.manual_seed(1)
    return starting_model(tune, CONFIG, root=root, folder=root / "run")


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Two rows, with a document that begins inside each."""
    tokenizer = Tokenizer.bytes()
    ids = [tokenizer.bos_id, *tokenizer.encode(TEXT)]
    rows = torch.tensor([ids, ids[20:] + ids[:20]])
    return rows[:, :-1], rows[:, 1:], rows[:, :-1] == tokenizer.bos_id


def loss_of(model: Decoder) -> Tensor:
    inputs, targets, starts = batch()
    got = score(model, inputs, targets, starts=starts)
    return got.nats / got.num_tokens


def learn(model: Decoder, steps: int, rate: float) -> float:
    """The loss before the last of some steps on one batch."""
    optimizer = torch.optim.Adam(learned_parameters(model).values(), lr=rate)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
    return loss.item()


def whole(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in parameters.items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_begins_where_its_base_is(root: Path, method: str) -> None:
    model, _ = begin(root, method=method)
    base, _ = retnet.load(root / "base")
    assert model.training
    model.eval()
    assert torch.equal(loss_of(model), loss_of(base))


def test_a_run_without_a_base_begins_with_a_new_model(root: Path) -> None:
    torch.manual_seed(5)
    model, info = starting_model(None, CONFIG, root=root, folder=root / "run")
    torch.manual_seed(5)
    want = Decoder(CONFIG)
    assert info is None
    assert all(torch.equal(t, want.state_dict()[n]) for n, t in model.state_dict().items())
    assert learned_parameters(model).keys() == dict(want.named_parameters()).keys()


@pytest.mark.parametrize(
    ("section", "count"),
    [
        ({"method": "full"}, None),
        ({"method": "state"}, 2 * 2 * 8 * 16),  # layers, heads, D_k, D_v
        ({"method": "lora", "rank": 3}, 2 * 3 * (16 + 16 + 16 + 32)),
        (
            {"method": "lora", "rank": 1, "targets": ("all-linear",)},
            2 * (2 * 32 + 3 * 48 + 3 * 40),  # q k, v g o, gate up down
        ),
        ({"method": "lora", "rank": 1, "targets": ("layers.1.branches.0.o_proj",)}, 48),
    ],
    ids=str,
)
def test_gradients_reach_what_should_learn_and_nothing_else(
    root: Path, section: dict[str, Any], count: int | None
) -> None:
    model, info = begin(root, **section)
    before = whole(dict(model.named_parameters()))
    learned = learned_parameters(model)
    total = sum(p.numel() for p in learned.values())
    assert total == (model.num_parameters() if count is None else count)
    learn(model, 2, 0.1)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert (info is None) == (section["method"] == "full")


@pytest.mark.parametrize(
    ("section", "rate"),
    [
        ({"method": "full"}, 1e-2),
        ({"method": "lora", "targets": ("all-linear",)}, 3e-2),
        ({"method": "state"}, 3e-1),
    ],
    ids=str,
)
def test_the_loss_falls(root: Path, section: dict[str, Any], rate: float) -> None:
    model, _ = begin(root, **section)
    before = loss_of(model).item()
    assert learn(model, 30, rate) < before - 0.5


@pytest.mark.parametrize("method", METHODS)
def test_what_was_learned_comes_back_to_the_bit(root: Path, method: str) -> None:
    """To a new model that goes on training, and through `retnet.load`."""
    model, info = begin(root, method=method)
    learn(model, 5, 0.05)
    learned = whole(learned_parameters(model))
    save_learned(root / "run", CONFIG, learned, info, Tokenizer.bytes())
    again, _ = begin(root, method=method)
    [path] = (root / "run").glob("*.safetensors")
    saved = load_file(path)
    parameters = learned_parameters(again)
    assert saved.keys() == parameters.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    assert torch.equal(loss_of(again), loss_of(model))
    loaded, tokenizer = retnet.load(root / "run")
    torch.testing.assert_close(loss_of(loaded), loss_of(model.eval()), rtol=1e-5, atol=1e-6)
    assert tokenizer.vocab_size == 257


def test_a_lora_trained_by_peft_has_the_logits_of_the_merged_one(root: Path) -> None:
    model, info = begin(root, method="lora", targets=("all-linear",), rank=4, alpha=7)
    learn(model, 8, 0.05)
    learned = whole(learned_parameters(model))
    save_learned(root / "run", CONFIG, learned, info, Tokenizer.bytes())
    merged, _ = retnet.load(root / "run")
    inputs, _, starts = batch()
    got, want = (m.eval()(inputs, starts=starts)[0] for m in (merged, model))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, retnet.load(root / "base")[0](inputs, starts=starts)[0])


def test_peft_reads_the_folder(root: Path) -> None:
    from peft import LoraConfig, PeftConfig

    model, info = begin(root, method="lora", rank=4, alpha=8)
    learned = whole(learned_parameters(model))
    save_learned(root / "run", CONFIG, learned, info, Tokenizer.bytes())
    read = PeftConfig.from_pretrained(str(root / "run"))
    assert isinstance(read, LoraConfig)
    assert (read.r, read.lora_alpha, read.lora_dropout) == (4, 8, 0.0)
    assert read.target_modules == {"q_proj", "v_proj"}
    assert read.base_model_name_or_path == str(root / "base")


def test_the_draw_of_a_lora_is_decided_by_torchs_seed(root: Path) -> None:
    first, second = (whole(learned_parameters(begin(root, method="lora")[0])) for _ in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_base_in_half_precision_is_trained_in_float32(root: Path) -> None:
    model, tokenizer = retnet.load(root / "base", dtype=torch.bfloat16)
    save_checkpoint(root / "base", model, tokenizer)
    for method in ("full", "lora"):
        assert {p.dtype for p in begin(root, method=method)[0].parameters()} == {torch.float32}
    model, info = begin(root, method="state")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    save_learned(root / "run", CONFIG, whole(learned_parameters(model)), info, Tokenizer.bytes())
    retnet.load(root / "run")


def test_a_missing_peft_says_what_brings_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    message = r"needs the peft library .*; pip install 'retnet\[peft\]' brings it"
    with pytest.raises(ValueError, match=message):
        begin(root, method="lora")
    begin(root, method="state")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"base": "", "method": "full"}, r'base \(""\) must be the folder of a checkpoint'),
        ({"base": "b", "method": "lora", "rank": 0}, r"rank \(0\) must be at least 1"),
        ({"base": "b", "method": "lora", "alpha": 0}, r"alpha \(0\) must be at least 1"),
        ({"base": "b", "method": "lora", "targets": []}, r"targets \(\[\]\) must name"),
        ({"base": "b", "method": "prefix"}, r"method \('prefix'\) must be one of 'full', 'lora'"),
        ({"base": "b"}, r"method is missing"),
    ],
    ids=str,
)
def test_a_section_that_cannot_be_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dict(TuneSection, section, "tune")


def test_a_section_is_read_from_plain_values() -> None:
    read = from_dict(TuneSection, {"base": "b", "method": "lora", "targets": "all-linear"}, "tune")
    assert read.targets == ("all-linear",)
    assert to_dict(read) == asdict(read) | {"targets": ["all-linear"]}


@pytest.mark.parametrize("target", ["w_proj", "lm_head", "proj", "norm", "embed_tokens"])
def test_a_target_that_is_no_linear_layer_names_those_that_are(root: Path, target: str) -> None:
    message = rf'targets \("{target}"\) must be linear layers .* choose from down_proj, g_proj'
    with pytest.raises(ValueError, match=message):
        begin(root, method="lora", targets=(target,))


def test_an_adapter_or_nothing_as_the_base_is_refused(root: Path) -> None:
    model, info = begin(root, method="state")
    save_learned(root / "run", CONFIG, whole(learned_parameters(model)), info, Tokenizer.bytes())
    tune = TuneSection(base="run", method="lora")
    with pytest.raises(ValueError, match=r'"run"\) is an adapter and must be a whole checkpoint'):
        starting_model(tune, CONFIG, root=root, folder=root / "second")
    tune = TuneSection(base="nowhere", method="lora")
    with pytest.raises(ValueError, match=r"nowhere has no config\.json"):
        starting_model(tune, CONFIG, root=root, folder=root / "second")


def test_a_run_goes_on_with_the_base_it_began_with_only(root: Path) -> None:
    model, info = begin(root, method="state")
    save_learned(root / "run", CONFIG, whole(learned_parameters(model)), info, Tokenizer.bytes())
    refuse_other_base(root / "run", begin(root, method="state")[1])
    refuse_other_base(root / "run", None)
    save_checkpoint(root / "base", Decoder(CONFIG), Tokenizer.bytes())
    with pytest.raises(
        ValueError, match=r"tune\.base \(\.\./base\) has fingerprint \w{8} and must"
    ):
        refuse_other_base(root / "run", begin(root, method="state")[1])


def test_a_model_that_is_not_the_bases_is_refused(root: Path) -> None:
    other = from_dict(DecoderConfig, {"d_model": 32, "layers": [LAYER], "vocab_size": 257})
    tune = TuneSection(base="base", method="full")
    with pytest.raises(ValueError, match=r"\[model\] is not that of tune\.base \(base\)"):
        starting_model(tune, other, root=root, folder=root / "run")


def test_model_and_tokenizer_of_a_run_are_its_bases(root: Path) -> None:
    tables = {"tune": {"base": "base", "method": "state"}, "data": {"train": "x.txt"}}
    filled = expand_base(tables, root)
    assert from_dict(DecoderConfig, filled["model"]) == CONFIG
    assert filled["data"]["tokenizer"] == {"kind": "file", "path": "base"}
    assert filled["data"]["train"] == "x.txt"
    assert expand_base(filled, root) == filled  # as run.toml has it, when a run goes on


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"model": {"d_model": 32, "layers": [LAYER]}},
            r"\[model\] differs from that of tune\.base \(base\)",
        ),
        (
            {"data": {"tokenizer": {"kind": "bpe"}}},
            r"\[data\.tokenizer\] differs from that of tune\.base \(base\); delete",
        ),
        ({"tune": {"base": "x"}}, r"x has no config\.json"),
    ],
)
def test_another_model_or_tokenizer_is_refused(
    root: Path, more: dict[str, Any], message: str
) -> None:
    tables = {"tune": {"base": "base"}, "data": {}} | more
    with pytest.raises(ValueError, match=message):
        expand_base(tables, root)


def test_a_base_without_tokenizer_is_refused(root: Path) -> None:
    (root / "base" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r'tune\.base \("base"\) has no tokenizer\.json'):
        expand_base({"tune": {"base": "base"}, "data": {}}, root)
