"""Options of attention in files: tables in tables come back as they were."""

import json

import torch

from mixers.cases import TOKEN_CASES, D, config
from retnet.hub.structure import dump_toml, from_dict, load_toml, to_dict
from retnet.mixers.attention import AttentionConfig, RandomPositions
from retnet.mixers.channel import GLUConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig
from retnet.train.optimizer import decayed_parameters


def described() -> DecoderConfig:
    """A layer of every case, and of what only training sees."""
    random = RandomPositions(kind="subset", length=64)
    mixers = [config("attention", given) for given in TOKEN_CASES["attention"]]
    mixers += [AttentionConfig(num_heads=2, random_positions=random)]
    layers = tuple(LayerConfig(mixer=m, channel=GLUConfig(width=8)) for m in mixers)
    return DecoderConfig(d_model=D, layers=layers, vocab_size=7)


def test_every_option_survives_json_and_toml(tmp_path) -> None:
    want = described()
    assert from_dict(DecoderConfig, json.loads(json.dumps(to_dict(want)))) == want
    path = tmp_path / "config.toml"
    path.write_text(dump_toml(want), encoding="utf-8")
    assert from_dict(DecoderConfig, load_toml(path)) == want


def test_what_is_learnt_of_positions_does_not_decay() -> None:
    model = Decoder(described())
    decayed = decayed_parameters(model)
    own = [name for name, _ in model.named_parameters() if "urpe" in name or "position" in name]
    assert len(own) >= 6
    assert not decayed & set(own)
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]]))[0].isfinite().all()
