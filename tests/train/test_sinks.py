import sys

import pytest

from retnet.train.sinks import find_sinks


def test_no_names_are_no_sinks():
    assert find_sinks([]) == []


def test_a_name_given_twice_is_one_sink():
    assert len(find_sinks(["tensorboard", "tensorboard"])) == 1


def test_an_unknown_sink_names_those_there_are():
    with pytest.raises(ValueError, match=r'log_to \("wandb"\) must be one of tensorboard'):
        find_sinks(["wandb"])


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    for name in list(sys.modules):
        if name.startswith(("torch.utils.tensorboard", "retnet.train.tensorboard")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ValueError, match=r"needs the package tensorboard, .* pip install 'retnet\[log\]'"
    ):
        find_sinks(["tensorboard"])
