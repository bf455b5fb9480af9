from dataclasses import replace
from pathlib import Path

import pytest

from retnet.data import Tokenizer
from retnet.hub import dump_toml, from_dict
from retnet.model import preset, rival
from retnet.train import RunConfig, load_config
from retnet.train.config import config_from_dict, fit_vocabulary

REPOSITORY = Path(__file__).parents[2]

FILE = """
[data]
train = ["a.txt"]
[model]
preset = "small-1m"
[train]
steps = 7
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "configs").glob("*.toml")), ids=lambda p: p.stem
)
def test_shipped_configs_load(path):
    config = load_config(path)
    assert config.run.dir == f"runs/{path.stem}"


def test_a_mixer_swaps_all_token_mixers_at_equal_size(file):
    ours = preset("small-1m")
    assert load_config(file, {"model.mixer": "attention"}).model == rival(ours, "attention")
    few = {"name": "attention", "num_heads": 4, "num_kv_heads": 2}
    swapped = load_config(file, {"model.mixer": few, "model.dropout": 0.25}).model
    ours = replace(ours, dropout=0.25)
    assert swapped == rival(ours, "attention", num_heads=4, num_kv_heads=2)


def test_a_preset_stands_for_a_model_and_other_keys_change_it(file):
    assert load_config(file).model == preset("small-1m")
    changed = load_config(file, {"model.dropout": 0.25, "model.preset": "small-4m"})
    assert changed.model.dropout == 0.25
    assert changed.model.layers == preset("small-4m").layers


def test_overrides_win_over_the_file(file):
    names = {"train.steps": 9, "data.tokenizer.kind": "bytes", "run.dir": "there"}
    config = load_config(file, names)
    assert (config.train.steps, config.data.tokenizer.kind, config.run.dir) == (9, "bytes", "there")


def test_a_resolved_config_reads_back_the_same(file):
    config = load_config(file)
    text = dump_toml(config)
    (file.parent / "run.toml").write_text(text, encoding="utf-8")
    assert load_config(file.parent / "run.toml") == config
    assert "preset" not in text


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.stepps", 3, r"train\.stepps is not a known key; did you mean steps\?"),
        ("trian.steps", 3, r"trian is not a known key; did you mean train\?"),
        ("model.droput", 0.1, r"model\.droput is not a known key; did you mean dropout\?"),
        ("model.preset", "small-4", r'\[model\] no preset "small-4"; choose one of small-1m, '),
        ("model.mixer", "mamba", r'\[model\] mixer: no mixer "mamba"; choose one of retention, '),
        ("model.mixer", {"name": "attention", "heads": 2}, r"\[model\] mixer: .*heads"),
        ("model.layers", [], r'model\.preset \("small-1m"\) and model\.layers both describe'),
        ("train.steps", "many", r"train\.steps \('many'\) must be of type int"),
        ("train.steps.more", 1, r"train\.steps\.more has no place: steps is a value"),
        ("train.steps", 0, r"\[train\] steps \(0\) must be at least 1"),
        ("train.eval_every", -1, r"eval_every \(-1\) must be 0 or more"),
        ("train.accumulate", 3, r"batch_size \(16\) must be a multiple of accumulate \(3\)"),
        ("train.learning_rate", 0, r"learning_rate \(0\.0\) must be above 0"),
        ("train.decay_to", 2, r"decay_to \(2\.0\) is a share of learning_rate and must be"),
        ("train.betas", [0.9, 1], r"betas \(\[0\.9, 1\.0\]\) must be two numbers in \[0, 1\)"),
        ("train.eval_tokens", 1, r"eval_tokens \(1\) leaves nothing to predict"),
        ("train.schedule", "cos", r"train\.schedule \('cos'\) must be one of 'cosine', 'linear'"),
        ("train", 3, r"train \(3\) must be a table"),
    ],
)
def test_wrong_settings_are_refused_with_value_rule_and_remedy(file, name, value, message):
    with pytest.raises(ValueError, match=message):
        load_config(file, {name: value})


def test_a_missing_setting_is_named():
    tables = {"data": {"train": ["a"]}, "model": {"preset": "small-1m"}, "train": {}}
    with pytest.raises(ValueError, match=r"train\.steps is missing; it has no default"):
        config_from_dict(tables, {}, default_dir="runs/x")
    assert tables["train"] == {}, "the caller's tables are left alone"


def test_vocabulary_0_is_the_tokenizers_and_a_smaller_one_is_refused(file):
    tokenizer = Tokenizer.bytes()
    assert fit_vocabulary(load_config(file), tokenizer).model.vocab_size == 257
    padded = load_config(file, {"model.vocab_size": 320})
    assert fit_vocabulary(padded, tokenizer) == padded
    small = load_config(file, {"model.vocab_size": 256})
    with pytest.raises(
        ValueError, match=r"model\.vocab_size \(256\) must be at least the tokenizer's \(257\)"
    ):
        fit_vocabulary(small, tokenizer)


def test_a_run_config_is_made_of_plain_tables(file):
    config = load_config(file)
    assert (
        from_dict(
            RunConfig,
            {
                "run": {"dir": "x"},
                "data": {"train": "a.txt"},
                "model": {
                    "d_model": 8,
                    "layers": [{"mixer": {"name": "retention", "num_heads": 2}}],
                },
                "train": {"steps": 7},
            },
        ).train
        == config.train
    )
