"""The demo from end to end, with a model and a text that take seconds."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from retnet.bench.timing import Effort
from retnet.evaluate import NGram, gzip_bits, score_files, xz_bits
from retnet.hub import from_dict, load
from retnet.model import DecoderConfig
from retnet.reproduce import DemoOptions, DemoResult, budget, demo, run_demo
from retnet.reproduce.corpus import PythonCorpus, is_held_out
from retnet.train import TrainResult, read_metrics

Demo = Callable[..., tuple[DemoResult | None, str]]


TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(20))
LAYER = {
    "mixer": {"name": "retention", "num_heads": 2},
    "channel": {"name": "glu", "width": 8},
}
SMALL = {
    "MODEL": from_dict(DecoderConfig, {"d_model": 16, "layers": [LAYER]}),
    "VOCAB_SIZE": 270,
    "TRAIN": replace(demo.TRAIN, batch_size=2, seq_len=32, eval_tokens=100),
    "SAMPLE_TOKENS": 6,
    "FORM_TOKENS": 12,
}


@pytest.fixture
def small_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    """Run a small demo in an empty folder: the result, and what stood on the screen."""
    library = tmp_path / "library"
    library.mkdir()
    held_out = next(n for n in range(1000) if is_held_out(f"m{n}.py"))
    for n in (*range(8), held_out):
        (library / f"m{n}.py").write_text(f"# {n}\n{TEXT}")
    for name, value in SMALL.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(budget, "EFFORT", Effort(warmup=0, min_rounds=1, budget_s=0.0))
    monkeypatch.chdir(tmp_path)

    def call(**options: Any) -> tuple[DemoResult | None, str]:
        console = Console(record=True, width=100, force_terminal=False)
        settings = DemoOptions(**{"steps": 2, "library": library, **options})
        return run_demo(settings, console), console.export_text()

    return call


def test_the_demo_tells_its_story_and_leaves_a_checkpoint(small_demo: Demo) -> None:
    result, screen = small_demo()
    assert result is not None
    folder = Path("runs/demo")
    for text in (
        "1/7  Text",
        "Nothing is downloaded",
        "2/7  Training",
        "step 2/2",
        "3/7  How well it predicts",
        "gzip -9",
        "xz -9e",
        "5-gram",
        "RetNet",
        "4/7  What it writes",
        "5/7  One function, three forms",
        "bfloat16",
        "6/7  What it keeps of a text",
        "1,000,000",
        "7/7  Picture",
        "runs/demo/demo.png",
        'retnet generate runs/demo --prompt "def "',
        "retnet chat runs/demo",
        "retnet evaluate runs/demo runs/demo/corpus/valid.jsonl",
        "retnet train runs/demo/run.toml --train.steps 4",
    ):
        assert "".join(text.split()) in "".join(screen.split())  # however its lines broke
    assert demo.PROMPT in screen
    assert result.sample.startswith(demo.PROMPT)
    assert len(result.sample) > len(demo.PROMPT)
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
    saved = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    assert saved["bits_per_byte"] == result.bits_per_byte
    assert saved["state_bytes"] == result.state_bytes
    load(folder)


def test_scores_and_forms_are_measured_on_what_was_held_out(small_demo: Demo) -> None:
    result, _ = small_demo()
    assert result is not None
    corpus = PythonCorpus.open(Path("runs/demo/corpus"))
    assert corpus is not None
    held_out = corpus.text(corpus.valid)
    score = score_files(*load("runs/demo"), [corpus.valid])
    assert score.num_bytes == len(held_out)
    assert result.bits_per_byte == {
        "gzip -9": gzip_bits(held_out) / len(held_out),
        "xz -9e": xz_bits(held_out) / len(held_out),
        "5-gram": NGram(corpus.text(corpus.train), order=5).bits(held_out) / len(held_out),
        "RetNet": score.bits_per_byte,
    }

    worst = {row.dtype: row.relative for row in result.forms}
    assert worst["float64"] < 1e-12
    assert worst["float32"] < 1e-4
    assert result.text_lengths == (1_000, 10_000, 100_000, 1_000_000)
    assert result.cache_bytes[3] == 1000 * result.cache_bytes[0] > result.state_bytes


def test_typed_again_it_shows_the_same_and_trains_no_more(small_demo: Demo) -> None:
    first, _ = small_demo()
    weights = Path("runs/demo/model.safetensors").read_bytes()
    again, screen = small_demo(steps=None)
    assert again == first
    assert "is complete with 2 steps" in screen
    assert Path("runs/demo/model.safetensors").read_bytes() == weights


def test_more_steps_train_on(small_demo: Demo) -> None:
    small_demo()
    _, screen = small_demo(steps=3)
    assert "going on from step 2" in screen
    assert read_metrics("runs/demo/metrics.jsonl")[-1]["step"] == 3


def test_fresh_begins_again(small_demo: Demo) -> None:
    small_demo()
    Path("runs/demo/left_over").touch()
    result, screen = small_demo(fresh=True, seed=1)
    assert result is not None
    assert "going on" not in screen
    assert not Path("runs/demo/left_over").exists()


def test_another_seed_needs_fresh(small_demo: Demo) -> None:
    small_demo()
    with pytest.raises(ValueError, match=r"seed \(1\) must stay 0, .* add --fresh to begin again"):
        small_demo(seed=1)


def test_a_folder_that_is_no_demo_is_left_alone(small_demo: Demo) -> None:
    thesis = Path("papers/thesis.tex")
    thesis.parent.mkdir()
    thesis.write_text("years of work")
    with pytest.raises(ValueError, match=r"dir \(papers\) holds something that is not a demo"):
        small_demo(dir=Path("papers"), fresh=True)
    assert thesis.read_text() == "years of work"


def test_a_demo_that_is_stopped_says_no_more(
    small_demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = demo.train

    def stopped(*args: Any, **kwargs: Any) -> TrainResult:
        return replace(real(*args, **kwargs), finished=False)

    monkeypatch.setattr(demo, "train", stopped)
    result, screen = small_demo()
    assert result is None
    assert "3/7" not in screen


def test_without_matplotlib_the_picture_is_left_out(
    small_demo: Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("matplotlib")

    monkeypatch.setattr(demo, "draw", missing)
    result, screen = small_demo()
    assert result is not None
    assert "Not drawn: matplotlib is missing" in screen
