"""Configs to plain values, to TOML, and back to equal configs; errors that help."""

import json
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retnet.hub import dump_toml, from_dict, load_toml, to_dict
from retnet.mixers.channel import FFNConfig, GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import PRESETS, DecoderConfig, LayerConfig, preset

widths = st.integers(1, 64)
epsilons = st.floats(1e-12, 1e-2)
activations = st.sampled_from(["swish", "gelu", "relu"])
# fields, not configs: strategies may not call the type checks, which draw random numbers
retentions = st.fixed_dictionaries(
    {
        "num_heads": st.integers(1, 8),
        "key_width": st.none() | widths,
        "value_width": st.none() | widths,
        "decay": st.sampled_from(["pow2", "linspace", "constant:1", "constant:0.25"]),
        "theta": st.sampled_from(["linspace", "rope", "none"]),
        "pairs": st.sampled_from(["interleaved", "half"]),
        "score_norm": st.sampled_from(["scaled", "torchscale", "torchscale_v1", "none"]),
        "gate": st.booleans(),
        "head_norm": st.sampled_from(["rms", "layer", "none"]),
        "head_norm_affine": st.booleans(),
        "norm_eps": epsilons,
        "bias": st.booleans(),
    }
)
glus = st.fixed_dictionaries({"width": widths, "activation": activations})
ffns = st.fixed_dictionaries(
    {
        "width": widths,
        "activation": activations,
        "inner_norm": st.booleans(),
        "norm_eps": epsilons,
    }
)
layers = st.tuples(st.none() | retentions, st.none() | glus | ffns, st.integers(1, 4)).filter(
    lambda drawn: drawn[0] or drawn[1]
)
decoders = st.fixed_dictionaries(
    {
        "d_model": widths,
        "layers": st.lists(layers, min_size=1, max_size=3),
        "vocab_size": st.integers(0, 10**6),
        "norm": st.sampled_from(["rms", "layer"]),
        "norm_eps": epsilons,
        "residual": st.sampled_from(["pre", "deepnorm"]),
        "tie_embeddings": st.booleans(),
        "embed_scale": st.booleans(),
        "embed_norm": st.booleans(),
        "dropout": st.floats(0, 0.99),
        "drop_path": st.floats(0, 0.99),
        "init": st.sampled_from(["retnet", "subln"]),
    }
)


def build(drawn: dict[str, Any]) -> DecoderConfig:
    """The config of the drawn fields."""
    built = []
    for mixer, channel, repeat in drawn["layers"]:
        kind = FFNConfig if channel and "inner_norm" in channel else GLUConfig
        built.append(
            LayerConfig(
                mixer=RetentionConfig(**mixer) if mixer else None,
                channel=kind(**channel) if channel else None,
                repeat=repeat,
            )
        )
    fields: dict[str, Any] = {**drawn, "layers": tuple(built)}
    return DecoderConfig(**fields)


@given(decoders)
@settings(max_examples=60)
def test_any_decoder_config_survives_dictionaries_json_and_toml(drawn: dict[str, Any]) -> None:
    config = build(drawn)
    plain = to_dict(config)
    assert from_dict(DecoderConfig, plain) == config
    assert from_dict(DecoderConfig, json.loads(json.dumps(plain))) == config
    assert from_dict(DecoderConfig, tomllib.loads(dump_toml(config))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_toml(name: str) -> None:
    config = preset(name, vocab_size=99)
    assert from_dict(DecoderConfig, tomllib.loads(dump_toml(config))) == config


@dataclass(frozen=True)
class Inner:
    text: str = ""
    path: Path = Path("a")
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    more: tuple[Inner, ...] = ()
    number: float = 1.0
    count: int = 0
    flag: bool = False
    maybe: int | None = None
    kind: Literal["a", "b", 3] = "a"


texts = st.text(max_size=20)
inners = st.builds(Inner, text=texts, path=st.just(Path("x/y z")), tags=st.lists(texts).map(tuple))
outers = st.builds(
    Outer,
    inner=inners,
    more=st.lists(inners, max_size=2).map(tuple),
    number=st.floats(allow_nan=False, allow_infinity=False),
    count=st.integers(-(2**63), 2**63 - 1),
    flag=st.booleans(),
    maybe=st.none() | st.integers(0, 9),
    kind=st.sampled_from(["a", "b", 3]),
)


@given(outers)
@settings(max_examples=100)
def test_any_text_and_number_survives_toml(config: Outer) -> None:
    """Quotes, backslashes, control characters, newlines, every alphabet."""
    assert from_dict(Outer, tomllib.loads(dump_toml(config))) == config
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


def test_toml_reads_as_a_person_would_write_it() -> None:
    config = DecoderConfig(
        d_model=256,
        layers=(
            LayerConfig(mixer=RetentionConfig(num_heads=4), channel=GLUConfig(width=512), repeat=6),
        ),
    )
    written = """
        d_model = 256
        [[layers]]
        repeat = 6
        mixer = { name = "retention", num_heads = 4 }
        channel = { name = "glu", width = 512 }
    """
    assert from_dict(DecoderConfig, tomllib.loads(written)) == config
    plain = to_dict(config)
    assert plain["layers"][0]["mixer"]["name"] == "retention"
    assert "key_width" not in plain["layers"][0]["mixer"], "None has no TOML"


GOOD: dict[str, Any] = {
    "d_model": 8,
    "layers": [
        {"mixer": {"name": "retention", "num_heads": 2}, "channel": {"name": "glu", "width": 8}}
    ],
}


def with_layer(**changes: Any) -> dict[str, Any]:
    return GOOD | {"layers": [GOOD["layers"][0] | changes]}


BAD = {
    "a misspelt key": (
        GOOD | {"d_modle": 9},
        r"model\.d_modle is not a known key; did you mean d_model\?",
    ),
    "a key like no other": (GOOD | {"zzz": 1}, r"model\.zzz is not a known key; known keys: d_m"),
    "a misspelt key of a branch": (
        with_layer(mixer={"name": "retention", "num_head": 2}),
        r"model\.layers\[0\]\.mixer\.num_head is not a known key; did you mean num_heads\?",
    ),
    "a misspelt key of a layer": (
        with_layer(repeats=2),
        r"model\.layers\[0\]\.repeats is not a known key; did you mean repeat\?",
    ),
    "a missing key": (
        {"layers": GOOD["layers"]},
        r"model\.d_model is missing; it has no default, so set it",
    ),
    "a missing key of a branch": (
        with_layer(channel={"name": "glu"}),
        r"model\.layers\[0\]\.channel\.width is missing",
    ),
    "an unknown branch": (
        with_layer(mixer={"name": "attenton"}),
        r"model\.layers\[0\]\.mixer\.name \('attenton'\) must be one of .*retention",
    ),
    "a channel mixer in the mixer's place": (
        with_layer(mixer={"name": "glu", "width": 8}),
        r"mixer\.name \('glu'\) must be one of",
    ),
    "a branch without a name": (
        with_layer(mixer={"num_heads": 2}),
        r'model\.layers\[0\]\.mixer must be a table with a "name", one of .*retention',
    ),
    "a branch that is no table": (with_layer(mixer="retention"), 'mixer must be a table with a "n'),
    "a name that is no text": (with_layer(mixer={"name": 3}), r"mixer\.name \(3\) must be one of"),
    "text for a number": (GOOD | {"d_model": "8"}, r"model\.d_model \('8'\) must be of type int"),
    "a fraction for a whole number": (GOOD | {"d_model": 8.5}, r"d_model \(8.5\) must be of type"),
    "a flag for a number": (GOOD | {"d_model": True}, r"d_model \(True\) must be of type int"),
    "a number for a flag": (GOOD | {"embed_scale": 1}, r"embed_scale \(1\) must be of type bool"),
    "a word that is no choice": (
        GOOD | {"norm": "batch"},
        r"model\.norm \('batch'\) must be one of 'rms', 'layer'",
    ),
    "an infinite number": (GOOD | {"norm_eps": float("inf")}, r"norm_eps \(inf\) must be a finite"),
    "a value that the config refuses": (
        GOOD | {"dropout": 2},
        r"\[model\] dropout \(2.0\) is a probability and must be in \[0, 1\)",
    ),
    "a value that a branch refuses": (
        with_layer(mixer={"name": "retention", "num_heads": 0}),
        r"\[model\.layers\[0\]\.mixer\] num_heads \(0\) must be at least 1",
    ),
    "a layer that is no table": (GOOD | {"layers": [3]}, r"model\.layers\[0\] \(3\) must be a tab"),
    "nothing in a layer": (GOOD | {"layers": [{}]}, r"a layer has neither mixer nor channel"),
}


@pytest.mark.parametrize("what", BAD)
def test_refuses(what: str) -> None:
    data, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        from_dict(DecoderConfig, data, "model")


def test_what_each_refusal_changes_is_fine_itself() -> None:
    config = from_dict(DecoderConfig, GOOD, "model")
    assert config.d_model == 8
    assert config.num_layers == 1


def test_a_whole_number_serves_as_a_float_and_one_entry_as_a_list() -> None:
    config = from_dict(Outer, {"number": 3, "inner": {"tags": "one", "path": "x/y"}})
    assert config == Outer(number=3.0, inner=Inner(tags=("one",), path=Path("x/y")))
    assert isinstance(config.number, float)


def test_toml_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml does not exist; give the path of a TOML"):
        load_toml(tmp_path / "none.toml")
    bad = tmp_path / "bad.toml"
    bad.write_text("a = 1\nb = \n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"bad\.toml is not valid TOML: .*line 2.*; mend that"):
        load_toml(bad)
    bad.write_bytes(b"a = '\xff'")
    with pytest.raises(ValueError, match=r"bad\.toml is not valid TOML"):
        load_toml(bad)
    with pytest.raises(ValueError, match="give the path of a TOML file"):
        load_toml(tmp_path)


def test_toml_files_are_read_as_utf8(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    path.write_text('[a]\nb = "grün"\n', encoding="utf-8")
    assert load_toml(path) == {"a": {"b": "grün"}}
