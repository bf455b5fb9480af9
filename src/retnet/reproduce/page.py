"""The page of an experiment, made of its results and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from retnet.bench.picture import GREY, save
from retnet.bench.table import Table
from retnet.hub import write_atomic
from retnet.reproduce.cell import Result
from retnet.reproduce.experiment import Experiment, Report, results_file, scale_for, stem
from retnet.reproduce.intervals import verdict
from retnet.reproduce.results import read_results


def page_text(experiment: Experiment, scale_name: str, results: Sequence[Result]) -> str:
    """The page in Markdown.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError(
            f"there are no results of {experiment.name} at scale {scale_name} to make a page of; "
            f"run `retnet reproduce {experiment.name} --scale {scale_name}`"
        )
    report = experiment.report(results)
    name = stem(experiment.name, scale_name)
    parts = [
        f"# {experiment.title}",
        f"{_scale_text(experiment, scale_name)} {experiment.about}",
        "## Verdict",
        verdict(report.claims),
        "## Ours",
        *_tables(report.ours),
        f"![{experiment.title}](images/{name}.png)",
    ]
    if report.papers:
        parts += [
            "## As published",
            *_tables(report.papers),
        ]
    parts += ["## How it was run", _how(experiment, scale_name, report, results)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def write_page(experiment: Experiment, scale_name: str, folder: Path) -> Path:
    """Write page and picture of the results in a folder beside them.

    Raises:
        ValueError: there are no results.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    results = read_results(results_file(experiment.name, scale_name, folder))
    text = page_text(experiment, scale_name, results)
    name = stem(experiment.name, scale_name)
    page, picture = folder / f"{name}.md", folder / "images" / f"{name}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9.0, 4.8), dpi=110, layout="constrained")
    figure.suptitle(experiment.title, fontsize=13, x=0.01, ha="left", fontweight="bold")
    experiment.report(results).draw(figure)
    figure.supxlabel(f"scale {scale_name}; {results[-1].utc[:10]}", fontsize=8, color=GREY)
    save(figure, picture)
    write_atomic(page, lambda path: path.write_text(text, encoding="utf-8"))
    return page


def _scale_text(experiment: Experiment, scale_name: str) -> str:
    about = f": {scale_for(experiment, scale_name).about}" if experiment.reads_texts else ""
    return f"Scale `{scale_name}`{about}."


def _tables(tables: Sequence[Table]) -> list[str]:
    return [part for table in tables for part in (f"**{table.title}.**", table.markdown())]


def _how(experiment: Experiment, scale_name: str, report: Report, results: Sequence[Result]) -> str:
    minutes = sum(result.seconds for result in results) / 60
    machines = sorted({_machine(result) for result in results})
    versions = sorted({f"torch {r.source.torch}, Python {r.source.python}" for r in results})
    commits = sorted({r.source.commit + " and changes" * r.source.dirty for r in results})
    days = sorted({result.utc[:10] for result in results})
    seconds = median(result.seconds for result in results)
    again = ", with the same texts" if experiment.reads_texts else ""
    lines = [
        *report.remarks,
        f"{len(results)} cells, {minutes:.0f} minutes in all, a median of {seconds:.0f} seconds; "
        f"{'; '.join(machines)}; {'; '.join(versions)}; commit {', '.join(commits)}; "
        f"{days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}.",
        f"Every result with its settings is a line of `{stem(experiment.name, scale_name)}.jsonl`. "
        f"Again{again}: `{_command(experiment, scale_name, results)}`.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _command(experiment: Experiment, scale_name: str, results: Sequence[Result]) -> str:
    """What a user types for as many seeds."""
    seeds = len({result.labels["seed"] for result in results})
    usual = scale_for(experiment, scale_name).seeds
    words = ["retnet reproduce", experiment.name, "--scale", scale_name]
    words += ["--seeds", str(seeds)] if seeds != usual else []
    return " ".join(words)


def _machine(result: Result) -> str:
    threads = result.source.threads
    return f"{result.source.device}, {threads} thread{'s' * (threads != 1)}"
