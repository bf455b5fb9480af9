"""`retnet reproduce table5 --scale smoke`, from texts to page, and what its page says."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from retnet.bench.machine import Provenance
from retnet.cli.reproduce import main
from retnet.data import TokenizerConfig
from retnet.reproduce.cell import Place, Result
from retnet.reproduce.command import Wish
from retnet.reproduce.experiment import Setup
from retnet.reproduce.experiments import EXPERIMENTS
from retnet.reproduce.experiments.table5 import NAMES, PAPER, RETNET, RIVALS
from retnet.reproduce.page import page_text
from retnet.reproduce.results import read_results
from retnet.reproduce.scales import scale
from retnet.reproduce.sweep import runs
from retnet.reproduce.texts import Amounts, prepare_texts, python_texts
from retnet.reproduce.training import num_parameters, rescaled

SOURCE = Provenance(
    device="a CPU, 2 cores", threads=2, torch="2", python="3", commit="abc", dirty=False
)


def test_the_smoke_scale_runs_every_model_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["table5", "--scale", "smoke"]
    main([*words, "--models", "rwkv", "retention", "--seeds", "1"])
    file = tmp_path / "runs/results/table5-smoke.jsonl"
    assert len(read_results(file)) == 4
    main(words)
    results = read_results(file)
    assert len(results) == len({result.key for result in results}) == 11 * 3
    before = file.read_bytes()
    capsys.readouterr()
    main([*words, "--workers", "2"])  # nothing is left to share
    assert file.read_bytes() == before
    out = capsys.readouterr().out
    assert all(word in out for name in NAMES.values() for word in name.split())
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert page == page_text(EXPERIMENTS["table5"], "smoke", results)
    assert "30.92" in page  # the paper's RWKV
    assert (file.parent / "images/table5-smoke.png").read_bytes().startswith(b"\x89PNG")

    sizes = {str(r.labels["model"]): r.settings["parameters"] for r in results}
    assert sizes.keys() == {RETNET, *RIVALS}
    assert max(sizes.values()) < 1.05 * min(sizes.values())
    for result in results:
        settings = result.settings
        assert settings["train"]["learning_rate"] == result.labels["learning_rate"]
        assert settings["seed"] == result.labels["seed"]
        assert math.isfinite(result.metrics["loss Python source"])
        assert {m["name"] for m in settings["measures"]} == {"Python source", "Python help"}
    same = {key: {str(r.settings[key]) for r in results} for key in ("text", "measures")}
    assert all(len(values) == 1 for values in same.values())
    for run in runs(results).values():
        assert sorted(run.rates) == list(scale("smoke").rates)
        assert run.rate == min(run.rates, key=lambda rate: run.rates[rate])
        assert sorted(run.results) == [0, 1]
    assert not any((tmp_path / "runs/reproduce/smoke/cells").glob("[0-9a-f]*"))


def test_a_cell_killed_in_training_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    place, setup = _setup(tmp_path)
    [cell] = EXPERIMENTS["table5"].plan(setup, {}).cells[:1]
    whole = cell.task.run(place).metrics
    again = cell.task.run(place).metrics  # its training is complete, and is not done again
    whole.pop("seconds")
    assert again.pop("seconds") > 0
    assert again == whole


def test_the_verdict_follows_from_the_results() -> None:
    losses = {RETNET: 3.0, "rwkv": 3.2, "h3": 2.8, "hyena": 3.0, "linear_attention": 4.0}
    spread = {0: 0.0, 1: 0.01, 2: -0.01}
    results = [
        _result(name, rate, seed, loss + extra + 0.05 * (name == "hyena") * seed)
        for name, loss in losses.items()
        for rate in (0.1, 0.2)
        for seed, extra in spread.items()
        if seed == 0 or rate == 0.1
    ]
    report = EXPERIMENTS["table5"].report(results)
    outcomes = {claim.text: claim.outcome for claim in report.claims if claim.gap}
    assert outcomes == {
        f"RetNet predicts better {where} than {NAMES[name]}": outcome
        for name, outcome in (
            ("rwkv", "holds"),
            ("h3", "does not"),
            ("hyena", "cannot tell"),
            ("linear_attention", "holds"),
        )
        for where in ("on home", "on other domains")
    }
    [table] = report.ours
    assert [row[0] for row in table.rows] == ["H3", "RetNet", "Hyena", "RWKV", "Linear Transformer"]
    assert table.rows[1][1].startswith(f"{math.exp(3.0):.2f} ± ")
    assert table.rows[1][-3] == "0.1*"
    text = page_text(EXPERIMENTS["table5"], "cpu", results)
    assert (
        "**Does not hold** (2 of 8): RetNet predicts better on home than H3 (-0.200 ± 0.000)"
        in text
    )
    assert "Hyena 0.1: 3.000, 0.2: 3.100" in text


def test_a_model_that_diverged_is_told_and_left_out() -> None:
    lost = [
        replace(_result(model, 0.1, seed, 3.0), metrics={"diverged": 1.0})
        for model, seed in (("rwkv", 0), (RETNET, 1))
    ]
    text = page_text(EXPERIMENTS["table5"], "smoke", [_result(RETNET, 0.1, 0, 3.0), *lost])
    assert "Diverged, and left out: RWKV at 0.1, seed 0; RetNet at 0.1, seed 1." in text
    assert "| RetNet | 20.09 | 54.60 | 0.1 | 1 |" in text  # one seed
    assert "**Not run**: RetNet predicts better on home than RWKV, H3" in text


def test_the_papers_table_has_its_own_order() -> None:
    [table] = EXPERIMENTS["table5"].report([_result(RETNET, 0.1, 0, 3.0)]).papers
    assert [row[0] for row in table.rows] == ["RetNet", "H3", "RWKV", "Hyena", "Linear Transformer"]
    assert len(PAPER) == 5


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_models_of_small_scales_have_as_many_parameters(name: str) -> None:
    from retnet.model import rival

    base = scale(name).model
    sizes = [num_parameters(rival(base, mixer)) for mixer in RIVALS]
    assert max(abs(size / num_parameters(base) - 1) for size in sizes) < 0.05


def test_the_papers_recipe_is_a_scale() -> None:
    paper = scale("paper")
    assert 195e6 < num_parameters(paper.model) < 210e6
    assert paper.train.steps * paper.train.tokens_per_step == 10_000 * 2**19
    assert (paper.train.schedule, paper.train.betas) == ("linear", (0.9, 0.98))


def test_a_smaller_budget_keeps_the_shape_of_the_schedule() -> None:
    train = rescaled(scale("cpu").train, 50)
    assert (train.steps, train.warmup_steps) == (50, 5)
    assert rescaled(scale("paper").train, 1000).warmup_steps == 38


def test_test_texts_are_the_beginnings_of_documents(tmp_path: Path) -> None:
    place, setup = _setup(tmp_path)
    texts = setup.texts
    assert texts is not None
    source, topics = texts.tests
    assert (source.num_tokens, topics.num_tokens) == (60, 20)  # 20 of each of 3 files; of one file
    stream = source.open(place)
    assert stream.num_documents == source.num_documents == 3
    assert stream.tokens[0] == stream.bos_id
    assert bytes(stream.tokens[1:20].tolist()).decode().startswith("# ")
    again = _setup(tmp_path)[1].texts
    assert again is not None
    assert (again.tests, again.fingerprint) == (texts.tests, texts.fingerprint)


def test_learning_rates_can_be_asked_for(tmp_path: Path) -> None:
    wish = Wish(name="table5", scale="smoke", rates=(0.1, 0.2, 0.3))
    sized = wish.sized(EXPERIMENTS["table5"])
    setup = replace(_setup(tmp_path)[1], scale=sized, models=("lstm",))
    plan = EXPERIMENTS["table5"].plan(setup, {})
    assert [cell.labels["learning_rate"] for cell in plan.cells] == [0.1, 0.2, 0.3]


def test_what_does_not_exist_or_does_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match='"table9" is no experiment; choose one of table5'):
        main(["table9"])
    with pytest.raises(ValueError, match='no scale "huge"; choose one of smoke, cpu, gpu, paper'):
        main(["table5", "--scale", "huge"])
    with pytest.raises(ValueError, match=r"--page .* is for `retnet reproduce positions`"):
        main(["table5", "--page", "x.md"])
    with pytest.raises(ValueError, match=r"rates \(0.1, 0.1\) must be positive and differ"):
        main(["table5", "--rates", "0.1", "0.1"])
    with pytest.raises(ValueError, match="figure6 trains nothing to its end, so --rates would do"):
        main(["figure6", "--rates", "0.1"])
    with pytest.raises(ValueError, match=r"probes reads no text, so --tokens \(50\) would do"):
        main(["probes", "--tokens", "50"])
    with pytest.raises(ValueError, match="there are no results of table5 at scale gpu"):
        page_text(EXPERIMENTS["table5"], "gpu", [])


def _setup(folder: Path) -> tuple[Place, Setup]:
    """A text of a few small files, whose tests are cut short."""
    library = folder / "library"
    library.mkdir(exist_ok=True)
    for number in range(200):
        file = library / f"m{number}.py"
        if not file.exists():
            file.write_text(f"# {number}\n" + "x = 1\n" * 20)
    place = Place(work=folder / "work", root=folder)
    place.work.mkdir(exist_ok=True)
    config = python_texts(place.work / "python", library)
    amounts = Amounts(test_tokens=60, document_tokens=20, tokenizer=TokenizerConfig(kind="bytes"))
    texts = prepare_texts(config, amounts, place)
    return place, Setup(scale=scale("smoke"), texts=texts)


def _result(name: str, rate: float, seed: int, loss: float) -> Result:
    tests = [{"name": text, "tokens": 10, "documents": 1} for text in ("home", "away")]
    train = {"steps": 2, "batch_size": 3, "seq_len": 4}
    worse = 0.1 * (rate == 0.2)
    return Result(
        experiment="table5",
        scale="cpu",
        key=f"{name}{rate}{seed}",
        labels={"model": name, "learning_rate": rate, "seed": seed},
        terms="",
        settings={"parameters": 1_000_000, "train": train, "measures": tests},
        metrics={"valid_loss": loss + worse, "loss home": loss, "loss away": loss + 1.0},
        seconds=60.0,
        source=SOURCE,
        utc="2026-01-01T00:00:00+00:00",
    )
