from dataclasses import replace

import pytest

from retnet.data import prepare
from retnet.train import TuneSection
from retnet.train.resume import FREE, corpus_fingerprint, refuse_changes, refuse_other_text


def test_harmless_settings_may_change(make_config):
    old = make_config()
    new = make_config(
        dir="moved", steps=99, accumulate=2, log_every=1, eval_every=0, save_every=0,
        eval_tokens=9, sample_every=2, sample_prompt="x", sample_tokens=1,
    )  # fmt: skip
    refuse_changes(old, new)
    refuse_changes(old, replace(new, data=replace(new.data, train=("elsewhere.txt",))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"run\.seed \(1\) must stay 0, with which this run began; set it back"),
        ({"dropout": 0.5}, r"model\.dropout \(0\.5\) must stay 0\.0"),
        ({"batch_size": 2}, r"train\.batch_size \(2\) must stay 4"),
        (
            {"learning_rate": 0.5},
            r"train\.learning_rate \(0\.5\) must stay 0\.01.* another run\.dir",
        ),
    ],
)
def test_settings_that_decide_what_is_computed_must_stay(make_config, change, message):
    with pytest.raises(ValueError, match=message):
        refuse_changes(make_config(), make_config(**change))


def test_a_changed_layer_is_named_by_its_place(make_config):
    old = make_config()
    layer = replace(old.model.layers[0], mixer=replace(old.model.layers[0].mixer, num_heads=4))
    new = replace(old, model=replace(old.model, layers=(layer,)))
    with pytest.raises(ValueError, match=r"model\.layers\[0\]\.mixer\.num_heads \(4\) must stay 2"):
        refuse_changes(old, new)
    longer = replace(old, model=replace(old.model, layers=(*old.model.layers, layer)))
    with pytest.raises(ValueError, match=r"model\.layers\[1\].* must stay not set"):
        refuse_changes(old, longer)


def test_free_settings_exist(make_config):
    config = replace(make_config(), tune=TuneSection(base="runs/base", method="full"))
    for name in FREE:
        value = config
        for part in name.split("."):
            value = getattr(value, part)


def test_vocabulary_0_means_the_one_it_began_with(make_config):
    config = make_config()
    resolved = replace(config, model=replace(config.model, vocab_size=257))
    refuse_changes(resolved, config)
    with pytest.raises(ValueError, match=r"model\.vocab_size \(300\) must stay 257"):
        refuse_changes(resolved, replace(config, model=replace(config.model, vocab_size=300)))


def test_the_same_text_elsewhere_has_the_same_fingerprint(make_config, tmp_path):
    config = make_config()
    first = corpus_fingerprint(prepare(config.data, tmp_path / "cache", base=tmp_path))
    (tmp_path / "train.txt").rename(tmp_path / "moved.txt")
    moved = replace(config.data, train=("moved.txt",))
    assert corpus_fingerprint(prepare(moved, tmp_path / "cache", base=tmp_path)) == first
    with (tmp_path / "valid.txt").open("r+") as file:
        file.write("X")
    assert corpus_fingerprint(prepare(moved, tmp_path / "cache", base=tmp_path)) != first


def test_other_text_is_refused_with_what_changed(make_config):
    config = make_config()
    refuse_other_text(config, config, "a", "a")
    with pytest.raises(ValueError, match=r"data\.train .* and the files have changed since"):
        refuse_other_text(config, config, "a", "b")
    other = replace(config, data=replace(config.data, valid=("new.txt",)))
    with pytest.raises(
        ValueError, match=r"data\.valid \(\('new\.txt',\)\) must stay \('valid\.txt',"
    ):
        refuse_other_text(config, other, "a", "b")
