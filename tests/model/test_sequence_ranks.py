"""A decoder whose rows are spread over ranks computes what one process with whole rows does."""

from pathlib import Path

import pytest

from model.on_ranks import CHECKS
from processes import run_together


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_together_are_one_process(num_ranks: int, tmp_path: Path) -> None:
    run_together(num_ranks, CHECKS, tmp_path)
