import pytest

from retnet.model import preset, rival
from retnet.train import cli_config, load_config

FILE = """
[data]
train = ["a.txt"]
[model]
d_model = 16
[[model.layers]]
repeat = 2
mixer = { name = "retention", num_heads = 2 }
channel = { name = "glu", width = 24 }
[[model.layers]]
channel = { name = "ffn", width = 24 }
[train]
steps = 7
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(FILE, encoding="utf-8")
    return path


def test_without_flags_the_file_is_the_config(file):
    assert cli_config(file, []) == load_config(file)


def test_flags_are_the_configs_own_dotted_names(file):
    words = "--train.steps 100 --data.train a b --train.betas 0.8 0.9 --model.tie_embeddings"
    words += " --train.precision bfloat16 --run.dir there --model.layers.0.repeat 3"
    words += " --data.tokenizer.vocab_size=300"
    config = cli_config(file, words.split())
    assert config.train.steps == 100
    assert config.train.betas == (0.8, 0.9)
    assert config.train.precision == "bfloat16"
    assert config.data.train == ("a", "b")
    assert config.data.tokenizer.vocab_size == 300
    assert config.run.dir == "there"
    assert config.model.tie_embeddings
    assert config.model.num_layers == 4
    assert config.model.layers[1] == load_config(file).model.layers[1]


def test_a_preset_can_be_chosen_by_flag(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('[data]\ntrain = "a"\n[model]\npreset = "small-1m"\n[train]\nsteps = 7\n')
    config = cli_config(file, ["--train.steps", "8", "--model.preset", "small-4m"])
    assert config.model == preset("small-4m")
    swapped = cli_config(file, ["--model.preset", "small-4m", "--model.mixer", "attention"])
    assert swapped.model == rival(preset("small-4m"), "attention")
    assert config.train.steps == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--train.stepz", "3"], "--train.steps"),
        (["--train.steps", "many"], "Error parsing --train.steps"),
        (["--train.steps", "0"], "steps (0) must be at least 1"),
        (["--model.layers.0.mixer.num_heads", "4"], "Unrecognized options"),
    ],
)
def test_a_wrong_flag_is_named_and_the_program_ends(file, words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        cli_config(file, words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_the_files_values_as_defaults(file, capsys):
    with pytest.raises(SystemExit) as ended:
        cli_config(file, ["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "retnet train" in shown
    assert "--train.steps INT" in shown
    assert "(default: 7)" in shown
    assert "fixed" not in shown
