"""A file can hold the config of every mixer: what a checkpoint says is what is loaded."""

import tomllib
from typing import Any

import pytest

from mixers.cases import cases, config
from retnet.hub.structure import dump_toml, from_dict


@pytest.mark.parametrize(("name", "given"), cases())
def test_a_mixer_config_is_read_back_from_its_own_table(name: str, given: dict[str, Any]) -> None:
    ours = config(name, given)
    assert from_dict(type(ours), tomllib.loads(dump_toml(ours))) == ours
