"""The other experiments: each runs at the smallest scale, and says what its results say."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.bench.machine import Provenance
from retnet.data import TokenizerConfig
from retnet.evaluate.probes import PROBES
from retnet.hub import load_checkpoint
from retnet.model import Decoder, preset, rival
from retnet.reproduce.cell import MODELS, Place, Result
from retnet.reproduce.experiment import Setup, results_file, scale_for
from retnet.reproduce.experiments import EXPERIMENTS
from retnet.reproduce.experiments.benches import FIGURE6, TABLE4, BenchTask
from retnet.reproduce.experiments.contexts import context_measure, growth_verdict, long_text
from retnet.reproduce.experiments.figure5 import resized
from retnet.reproduce.experiments.probes import MIXERS as PROBED
from retnet.reproduce.experiments.quality import best_way
from retnet.reproduce.page import page_text, write_page
from retnet.reproduce.results import append_result, read_results
from retnet.reproduce.runner import Means, run_experiment
from retnet.reproduce.scales import scale
from retnet.reproduce.sweep import runs
from retnet.reproduce.texts import Amounts, StoredText, prepare_texts, python_texts
from retnet.reproduce.training import num_parameters, variant

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs/results"
SOURCE = Provenance(
    device="a CPU, 2 cores", threads=2, torch="2", python="3", commit="abc", dirty=False
)


def small(
    folder: Path, *models: str, rates: tuple[float, ...] = (3e-3,), held_out: bool = False
) -> tuple[Means, Setup]:
    """Texts of a few files with long documents, one learning rate, one seed, two steps."""
    library = folder / "library"
    library.mkdir()
    for number in range(60):
        lines = [f"x{number} = {line} * {line % 7}\n" for line in range(40)]
        (library / f"m{number}.py").write_text("".join(lines))
    place = Place(work=folder / "work", root=folder)
    config = python_texts(place.work / "python", library)
    amounts = Amounts(
        test_tokens=1200,
        document_tokens=300,
        tokenizer=TokenizerConfig(kind="bytes"),
        held_out=held_out,
    )
    smoke = scale("smoke")
    sized = replace(smoke, train=replace(smoke.train, steps=2), rates=rates, seeds=1)
    texts = prepare_texts(config, amounts, place)
    means = Means(place=place, results=folder / "results" / "x-smoke.jsonl")
    return means, Setup(scale=sized, texts=texts, models=models)


@pytest.mark.parametrize(
    ("name", "models", "cells", "said"),
    [
        ("table6", ("RetNet", "no decay"), 2, "RetNet predicts worse on Python source with"),
        ("table8", (), 2, "RetNet is better than the Transformer at"),
        ("figure5", ("RetNet 32 x 1", "Transformer 32 x 1", "RetNet 64 x 1"), 3, "falls faster"),
        ("extrapolation", ("RetNet", "RoPE", "HWFA"), 3, "better than RoPE at 256"),
        ("probes", ("retention",), 6, "recalls many keys better than"),
        ("lm-layouts", ("decoder-only", "prefix-LM"), 7, "read both ways by shared weights helps"),
        ("quality", (), 10, "improved, one layer of attention predicts better than"),
    ],
)
def test_an_experiment_runs_and_writes_its_page(
    name: str, models: tuple[str, ...], cells: int, said: str, tmp_path: Path
) -> None:
    means, setup = small(tmp_path, *models, held_out=name == "quality")
    experiment = EXPERIMENTS[name]
    results_at = results_file(name, "smoke", tmp_path / "results")
    results = run_experiment(experiment, setup, replace(means, results=results_at))
    assert len(results) == cells
    assert all(math.isfinite(value) for result in results for value in result.metrics.values())
    page = write_page(experiment, "smoke", tmp_path / "results")
    assert page.name == f"{name}-smoke.md"
    assert said in page.read_text(encoding="utf-8")
    picture = tmp_path / "results/images" / f"{name}-smoke.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_model_is_trained_once_for_all_experiments(tmp_path: Path) -> None:
    means, setup = small(tmp_path)

    def run(name: str, *models: str) -> set[str]:
        at = results_file(name, "smoke", tmp_path / "results")
        asked = replace(setup, models=models)
        results = run_experiment(EXPERIMENTS[name], asked, replace(means, results=at))
        assert all("valid_loss" in result.metrics for result in results)
        return {folder.name for folder in (tmp_path / "work" / MODELS).iterdir()}

    trained = run("table8")
    assert len(trained) == 2 + 1  # two models, and the tokens that they read
    assert run("extrapolation", "RetNet", "RoPE") == trained
    for name in trained - {".tokens"}:
        folder = tmp_path / "work" / MODELS / name
        assert load_checkpoint(folder)[0].num_parameters() > 0
        assert not (folder / "trainer").exists()


def test_methods_at_the_test_are_measured_on_the_weights_of_one_training(tmp_path: Path) -> None:
    means, setup = small(tmp_path, "RoPE")
    [result] = run_experiment(EXPERIMENTS["extrapolation"], setup, means)
    assert setup.texts is not None
    text = long_text(setup.texts.tests, 256).name
    plain, near = (result.metrics[f"loss {text} @ {length}"] for length in (256, 64))
    changed = {
        name.removesuffix(f": loss {text} @ 256"): value
        for name, value in result.metrics.items()
        if name.endswith(f": loss {text} @ 256")
    }
    assert len(changed) == 9
    for name in ("ReRoPE at the test", "NTK at the test", "YaRN at the test"):
        assert changed[name] != plain
    # a window as long as the training changes nothing there
    for name in ("window at the test", "log n at the test"):
        assert result.metrics[f"{name}: loss {text} @ 64"] == pytest.approx(near, abs=1e-6)


def test_a_variant_has_the_weights_of_the_model() -> None:
    config = replace(rival(preset("small-1m"), "attention"), vocab_size=10)
    model = Decoder(config)
    other = variant(model, config)
    tokens = torch.arange(8).view(1, 8)
    torch.testing.assert_close(other(tokens)[0], model.eval()(tokens)[0])


def test_every_position_method_of_the_list_is_there() -> None:
    text = _text("books", 9000)
    texts: Any = type("T", (), {"tests": (text,), "vocab_size": 256, "data": None})
    texts.fingerprint = "f"
    scales = replace(scale("cpu"), seeds=1, rates=(1.0,))
    plan = EXPERIMENTS["extrapolation"].plan(_setup_of(scales, texts), {})
    names = {str(cell.labels["model"]) for cell in (*plan.cells, *plan.later)}
    for name in ("RetNet", "RWKV", "RoPE", "ALiBi", "xPos", "window", "HWFA", "HWFA2", "log n"):
        assert name in names
    assert {"KeyNorm", "NoPE", "random positions"} <= names


def test_the_first_text_that_is_long_enough_is_read() -> None:
    home, short, long = _text("home", 500), _text("short", 100), _text("long", 900)
    assert long_text([home, short, long], 400).name == "home"
    assert long_text([home, short, long], 800).name == "long"
    assert long_text([home, short, long], 5000).name == "long"
    assert context_measure(home, (128, 256, 512), 64).contexts == (128, 256)
    with pytest.raises(ValueError, match="short has no two documents of more than 256 tokens"):
        context_measure(short, (128, 256), 64)


def test_growth_is_told_by_intervals_over_seeds() -> None:
    def curve(*losses: float) -> dict[int, dict[int, float]]:
        return {
            64 << n: {seed: loss + 0.0005 * seed * n for seed in range(3)}
            for n, loss in enumerate(losses)
        }

    assert growth_verdict(curve(3.0, 2.8, 2.6)) == "improves"
    assert growth_verdict(curve(3.0, 2.8, 3.6)) == "breaks"
    assert growth_verdict(curve(3.0, 3.0, 3.0)) == "flat"
    unsure = {64: {0: 3.0, 1: 3.0}, 128: {0: 3.0, 1: 3.1}}
    assert growth_verdict(unsure) == "cannot tell"
    assert growth_verdict({64: {0: 1.0}, 128: {0: 0.5}}) == ""


def test_sizes_keep_the_width_of_heads() -> None:
    base = preset("small-1m")
    half = resized(base, 1, 2, 1, 2)
    assert (half.d_model, half.num_layers) == (64, 2)
    assert num_parameters(base) == pytest.approx(8 * num_parameters(half), rel=0.05)


def test_the_paper_finds_that_every_part_helps() -> None:
    """Its own numbers, put in the place of ours, must give its own verdict."""
    from retnet.reproduce.experiments.table6 import PAPER

    results = [
        _result(name, 0.1, seed, {"loss home": math.log(row[0]), "loss away": math.log(row[1])})
        for name, row in PAPER.items()
        for seed in range(2)
    ]
    claims = EXPERIMENTS["table6"].report(results).claims
    assert [claim.outcome for claim in claims] == ["holds"] * 10


def test_exponents_are_fitted_by_seed() -> None:
    results = []
    for family, exponent in (("RetNet", 0.2), ("Transformer", 0.1)):
        for width, size in ((32, 1e6), (64, 4e6)):
            for seed in range(3):
                loss = (size / 1e6) ** -(exponent + 0.001 * seed)
                result = _result(f"{family} {width} x 1", 0.1, seed, {"loss home": loss})
                settings = {**result.settings, "parameters": int(size)}
                results.append(replace(result, settings=settings))
    report = EXPERIMENTS["figure5"].report(results)
    assert report.claims[0].outcome == "holds"
    assert [row[-1] for row in report.ours[0].rows] == ["0.2010 ± 0.0006", "0.1010 ± 0.0006"]


@pytest.mark.parametrize(
    ("experiment", "lines"), [(FIGURE6, "decode/step.jsonl"), (TABLE4, "train/step.jsonl")]
)
def test_benches_are_compared_case_by_case(experiment: Any, lines: str, tmp_path: Path) -> None:
    """Of the committed records, as two repetitions that agree."""
    text = (ROOT / "benchmarks/results" / lines).read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    path = results_file(experiment.name, "cpu", tmp_path)
    for repetition in range(2):
        result = _result("bench", 0.0, repetition, {})
        append_result(path, replace(result, lines=records))
    report = experiment.report(read_results(path))
    outcomes = {claim.text: claim.outcome for claim in report.claims}
    assert len(outcomes) >= 4
    assert set(outcomes.values()) <= {"holds", "does not", "cannot tell"}
    if experiment is FIGURE6:
        assert outcomes["RetNet keeps less than retnet with attention at 8k"] == "holds"
    assert write_page(experiment, "cpu", tmp_path).name == f"{experiment.name}.md"


def test_a_bench_is_a_cell_for_each_repetition() -> None:
    plan = FIGURE6.plan(_setup_of(scale("smoke"), None), {})
    tasks = [cell.task for cell in plan.cells]
    assert all(isinstance(task, BenchTask) and task.quick for task in tasks)
    assert len({cell.key for cell in plan.cells}) == 2


def test_probes_are_learned_from_examples_that_are_not_those_of_the_test(tmp_path: Path) -> None:
    _, setup = small(tmp_path, "qrnn")
    sized = replace(setup.scale, rates=(1e-2,))
    plan = EXPERIMENTS["probes"].plan(replace(setup, scale=sized), {})
    [cell] = [cell for cell in plan.later if cell.labels["model"] == "QRNN on position"]
    task: Any = cell.task
    longer = replace(task, train=replace(task.train, steps=60, warmup_steps=5))
    found = longer.run(Place(work=tmp_path, root=tmp_path)).metrics
    again = longer.run(Place(work=tmp_path, root=tmp_path)).metrics
    assert found == again
    first = task.run(Place(work=tmp_path, root=tmp_path)).metrics
    assert found["valid_loss"] < first["valid_loss"]
    assert set(found) == {"valid_loss", "operations", "accuracy @ 64", "exact @ 64"}


@pytest.mark.parametrize("mixer", sorted(set(PROBED) - {"qrnn"}))
def test_the_work_of_every_mixer_in_a_probe_is_counted(mixer: str, tmp_path: Path) -> None:
    """Also by those that hand parameters to their parts, which a counter of work may refuse."""
    _, setup = small(tmp_path, mixer)
    plan = EXPERIMENTS["probes"].plan(setup, {})
    cell = next(cell for cell in plan.later if str(cell.labels["model"]).endswith("on position"))
    task: Any = cell.task
    found = task.run(Place(work=tmp_path, root=tmp_path)).metrics
    assert found["operations"] > 0


def test_layouts_are_compared_at_equal_parameters_and_nearly_equal_work() -> None:
    sized = replace(scale("cpu"), seeds=1, rates=(1.0,))
    plan = EXPERIMENTS["lm-layouts"].plan(_setup_of(sized, None), {})
    sizes: dict[str, int] = {}
    for cell in plan.cells:
        layout, _, task = str(cell.labels["model"]).partition(" on ")
        if task == "sort":
            sizes[layout] = cell.task.settings()["parameters"]
    assert sizes["prefix-LM"] == sizes["decoder-only"]
    assert sizes["RetNet, decoder-only"] == pytest.approx(sizes["decoder-only"], rel=0.02)
    assert 2 < sizes["encoder-decoder"] / sizes["decoder-only"] < 2.5


def test_a_layout_that_wins_is_told_so() -> None:
    """Losses made up so that every claim holds."""
    measured = {"operations": 1e6, "accuracy @ 40": 0.5}
    losses = {
        "decoder-only": 0.5,
        "prefix-LM": 0.4,
        "encoder-decoder": 0.3,
        "encoder-decoder, causal encoder": 0.2,
        "encoder-decoder, mixed encoder": 0.1,
        "RetNet, decoder-only": 0.4,
    }
    results = [
        _result(f"{layout} on sort", 0.1, seed, {**measured, "valid_loss": loss})
        for layout, loss in losses.items()
        for seed in range(2)
    ]
    report = EXPERIMENTS["lm-layouts"].report(results)
    outcomes = {claim.text: claim.outcome for claim in report.claims if claim.name == "sort"}
    assert set(outcomes.values()) == {"holds"}
    assert len(outcomes) == 5
    assert not any("too easy" in remark for remark in report.remarks)


def test_a_layout_that_leaves_nothing_to_win_is_named() -> None:
    measured = {"operations": 1e6, "accuracy @ 40": 1.0, "valid_loss": 0.001}
    results = [_result("decoder-only on sort", 0.1, 0, measured)]
    [said] = [r for r in EXPERIMENTS["lm-layouts"].report(results).remarks if "too easy" in r]
    assert "a lead over decoder-only on sort: the loss there is below the 0.005 nats" in said


def test_pages_of_the_docs_are_what_their_results_give() -> None:
    for file in sorted(DOCS.glob("*.jsonl")):
        results = read_results(file)
        experiment, scale_name = EXPERIMENTS[results[0].experiment], results[0].scale
        assert file == results_file(experiment.name, scale_name, DOCS)
        text = file.with_suffix(".md").read_text(encoding="utf-8")
        assert text == page_text(experiment, scale_name, results), (
            f"run: retnet reproduce {experiment.name} --scale {scale_name} --only page "
            f"--results {DOCS.relative_to(ROOT)}"
        )
        assert (DOCS / "images" / f"{file.stem}.png").exists()


def test_every_experiment_has_a_line_of_help() -> None:
    from retnet.cli import reproduce

    about = reproduce.__doc__ or ""
    assert all(f"\n  {name} " in about for name in (*EXPERIMENTS, reproduce.POSITIONS))
    assert all(name in PROBES for name in ("mqar", "position"))


def test_quality_reads_whole_held_out_documents(tmp_path: Path) -> None:
    means, setup = small(tmp_path, held_out=True)
    assert setup.texts is not None
    tests = {text.name: text for text in setup.texts.tests}
    assert list(tests) == ["test", "validation"]
    for text in tests.values():
        assert text.num_tokens == text.num_bytes + text.num_documents
        stream = text.open(means.place)
        ids = stream.tokens[stream.tokens != stream.bos_id].tolist()
        read = bytes(ids).decode()
        assert len(read) == text.num_bytes
        # a document of the library here is 40 lines of five words each
        assert text.num_words == 6 * 40 * text.num_documents


def test_quality_is_larger_and_longer_than_the_scale() -> None:
    sized = scale_for(EXPERIMENTS["quality"], "cpu")
    usual = scale("cpu")
    assert scale_for(EXPERIMENTS["table5"], "cpu") == usual
    assert sized.train.steps * sized.train.tokens_per_step == 6 * (
        usual.train.steps * usual.train.tokens_per_step
    )
    assert num_parameters(sized.model) == pytest.approx(4 * num_parameters(usual.model), rel=0.01)
    assert sized.rates == (2e-3, 3e-3)
    assert sized.amounts.held_out


def test_a_model_is_judged_by_the_way_it_reads_validation_best() -> None:
    def result(model: str, windows: float, documents: float) -> Result:
        bits = {"by windows": windows, "by documents": documents}
        metrics = {f"bits validation {way}": value for way, value in bits.items()}
        return _result(model, 3e-3, 0, metrics)

    found = runs([result("RetNet", 1.5, 1.4), result("Transformer", 1.45, 3.0)])
    assert {name: best_way(run) for name, run in found.items()} == {
        "RetNet": "by documents",
        "Transformer": "by windows",
    }


def _setup_of(sized: Any, texts: Any) -> Any:
    """A setup whose texts are never read."""
    setup = object.__new__(Setup)
    for name, value in (("scale", sized), ("texts", texts), ("models", ())):
        object.__setattr__(setup, name, value)
    return setup


def _text(name: str, longest: int) -> StoredText:
    return StoredText(
        name=name,
        fingerprint="f",
        num_tokens=2 * longest,
        num_documents=2,
        num_bytes=2 * longest,
        longest=longest,
    )


def _result(name: str, rate: float, seed: int, metrics: dict[str, float]) -> Result:
    tests = [
        {"name": text, "measure": "loss", "tokens": 10, "documents": 1} for text in ("home", "away")
    ]
    return Result(
        experiment="x",
        scale="cpu",
        key=f"{name}{rate}{seed}",
        labels={"model": name, "learning_rate": rate, "seed": seed},
        terms="",
        settings={
            "parameters": 1_000_000,
            "train": {"steps": 2, "batch_size": 3, "seq_len": 4},
            "measures": tests,
        },
        metrics={"valid_loss": 1.0, **metrics},
        seconds=60.0,
        source=SOURCE,
        utc="2026-01-01T00:00:00+00:00",
    )
