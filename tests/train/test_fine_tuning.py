"""Whole runs that begin with a checkpoint: they learn, stop, go on and load like adapters."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import retnet
from retnet.data import TokenizerConfig
from retnet.train import RunConfig, TrainSection, TuneSection, load_config, run, train
from retnet.train.folder import RunFolder

METHODS = ("full", "lora", "state")


@pytest.fixture
def tuned_config(
    make_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., RunConfig]:
    """Train a base, and make configs that go on with it."""
    monkeypatch.setattr(run, "plot_metrics", lambda *_: None)
    base = train(make_config(dir="base"), base=tmp_path).folder
    model, _ = retnet.load(base)

    def make(method: str, dir: str, **settings: object) -> RunConfig:
        config = make_config(dir=dir, learning_rate=0.05, sample_every=0, **settings)
        return replace(
            config,
            tune=TuneSection(base="base", method=method),  # type: ignore[arg-type]
            model=model.config,
            data=replace(config.data, tokenizer=TokenizerConfig(kind="file", path="base")),
        )

    return make


@pytest.mark.parametrize("method", METHODS)
def test_a_tuned_run_learns_and_goes_on_bit_for_bit(
    tuned_config: Callable[..., RunConfig], tmp_path: Path, method: str
) -> None:
    result = train(tuned_config(method, "whole"), base=tmp_path)
    train(tuned_config(method, "cut", schedule="cosine"), base=tmp_path)
    # As if killed after step 8, which is kept beside step 12.
    folder = RunFolder(tmp_path / "cut")
    (tmp_path / "cut/trainer/step-12").rename(tmp_path / "gone")
    assert folder.steps()[0].name == "step-8"
    train(tuned_config(method, "cut"), base=tmp_path)
    (ours,), (theirs,) = (
        list((tmp_path / name).glob("*.safetensors")) for name in ("whole", "cut")
    )
    assert ours.name == theirs.name
    ours, theirs = load_file(ours), load_file(theirs)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    base_size = (tmp_path / "base/model.safetensors").stat().st_size
    if method != "full":
        assert sum(t.nbytes for t in ours.values()) < base_size / 2
    before = retnet.train.read_metrics(tmp_path / "base/metrics.jsonl")[-1]["valid_loss"]
    assert result.metrics["valid_loss"] < before
    model, _ = retnet.load(tmp_path / "whole")
    base, _ = retnet.load(tmp_path / "base")
    tokens = torch.arange(12)[None]
    assert not torch.allclose(model(tokens)[0], base(tokens)[0], atol=1e-3)


def test_a_file_with_tune_takes_model_and_tokenizer_of_its_base(
    tuned_config: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tune.toml").write_text(
        '[data]\ntrain = ["train.txt"]\nvalid = ["valid.txt"]\n'
        '[tune]\nbase = "base"\nmethod = "state"\n[train]\nsteps = 2\nbatch_size = 2\n'
        "seq_len = 24\n",
        encoding="utf-8",
    )
    config = load_config(tmp_path / "tune.toml")
    assert config.model == tuned_config("state", "x").model
    assert train(config).finished
    assert (tmp_path / "runs/tune/initial_state.safetensors").exists()


def test_another_base_is_refused(
    tuned_config: Callable[..., RunConfig], make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = tuned_config("state", "tuned", steps=2)
    train(config, base=tmp_path)
    longer = replace(config, train=TrainSection(**{**vars(config.train), "steps": 4}))
    train(make_config(dir="base", steps=14, schedule="cosine"), base=tmp_path)
    with pytest.raises(ValueError, match=r"tune\.base .* has fingerprint .* and must have"):
        train(longer, base=tmp_path)
