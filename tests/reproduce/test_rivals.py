"""The page of the rivals is made of the registries and says what they say."""

import inspect
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from retnet.cli.reproduce import main
from retnet.mixers import CHANNEL_MIXERS, MIXERS
from retnet.reproduce.positions import position_configs, position_row, position_table
from retnet.reproduce.rivals import agreement_table, rivals_text, state_table, write_rivals

BOTH = MIXERS | CHANNEL_MIXERS
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", BOTH)
def test_every_config_says_what_it_is(name: str) -> None:
    config = cast(Any, BOTH[name])
    first = (inspect.getdoc(config) or "").split("\n\n")[0]
    assert re.search(r"\d{4}", first), f"{first}: name the paper and its year"
    assert "=" in config.formula
    assert config.cost.count("O(") >= 2


def test_the_page_has_a_section_for_each_and_is_up_to_date() -> None:
    page = (ROOT / "docs/rivals.md").read_text()
    text = "\n".join(rivals_text())
    assert all(f"**`{name}`**" in text for name in BOTH)
    assert text in page, "run: retnet reproduce positions --page docs/rivals.md"
    for row in position_configs():
        assert f"| {row} |" in page


def test_states_that_grow_are_told_from_those_that_do_not() -> None:
    grows = {row[0]: row[-1] for row in state_table().rows}
    assert grows["retention"] == "no"
    assert grows["attention"] == "yes"


def test_agreement_is_shown_as_it_was_recorded() -> None:
    found = {"a": {"oracle": "x 1", "float64": 2e-6, "float32": 0.25}, "b": {"oracle": "y 2"}}
    assert agreement_table(found).rows == [
        ("`a`", "x 1", "2e-15", "25%"),
        ("`b`", "y 2", "", ""),
    ]
    recorded = json.loads((ROOT / "tests/golden/agreement.json").read_text())
    assert recorded.keys() == {file.stem for file in (ROOT / "tests/golden").glob("*.npz")}
    shares = [entry[dtype] for entry in recorded.values() for dtype in entry if dtype != "oracle"]
    assert all(share < 1 for share in shares)


def test_the_tables_are_written_between_their_markers(tmp_path: Path) -> None:
    page, agreement = tmp_path / "page.md", tmp_path / "agreement.json"
    names = ("rivals", "agreement", "positions")
    page.write_text("\n".join(f"<!-- begin: {name} -->\nstale\n<!-- end -->" for name in names))
    agreement.write_text("{}")
    config = position_configs()["attention"]
    rows = [position_row("attention", config, 1)]
    assert write_rivals(page, rows, agreement)
    assert position_table(rows).markdown() in page.read_text()
    assert "stale" not in page.read_text()
    assert not write_rivals(page, rows, agreement)


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    both = {k: v for k, v in position_configs().items() if k in ("attention", "retention")}
    monkeypatch.setattr("retnet.reproduce.positions.position_configs", lambda: both)
    with torch.random.fork_rng():
        main(["positions", "--seeds", "1"])
    out = capsys.readouterr().out
    assert "knows after BOS" in out
    assert "knows in deeper layers" in out
    with pytest.raises(ValueError, match='"position" is no experiment; choose one of table5'):
        main(["position"])
    with pytest.raises(ValueError, match=r"seeds \(-1\) must be 0 or more"):
        main(["positions", "--seeds", "-1"])
