"""Converting as such: streams, whole or not at all, dtypes, tokenizers, answers."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from golden_files import FOLDER
from hub.foreign.shared import converted, golden_weights, same
from model.small import config, decoder
from retnet.data import Tokenizer
from retnet.hub import load, load_checkpoint, save_checkpoint
from retnet.hub.foreign import FORMATS, MissingAnswers, convert
from retnet.hub.foreign.format import Format
from retnet.model import Decoder

SOURCE = FOLDER / "torchscale_options.safetensors"  # whose config is complete

MEASURE = """
import os, sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from retnet.hub.foreign import convert, sources

sources.RENEW_BYTES = 1 << 24  # so that a smaller model tells
D, F, V, LAYERS = 256, 512, 4096, 12
SAID = {"decoder_retention_heads": "2", "use_lm_decay": "false", "activation_fn": "swish",
        "layernorm_eps": "1e-6", "no_scale_embedding": "true"}
SHAPES = {"retention.q_proj": (D, D), "retention.k_proj": (D, D), "retention.v_proj": (F, D),
          "retention.g_proj": (F, D), "retention.out_proj": (D, F), "ffn.fc1": (F, D),
          "ffn.gate": (F, D), "ffn.fc2": (D, F), "retention_layer_norm": (D,),
          "final_layer_norm": (D,)}
folder = Path(sys.argv[1])


def make():
    shapes = {f"layers.{i}.{name}.weight": s for i in range(LAYERS) for name, s in SHAPES.items()}
    shapes |= {"embed_tokens.weight": (V, D), "output_projection.weight": (V, D),
               "layer_norm.weight": (D,)}
    weights = {name: torch.full(shape, 0.5) for name, shape in shapes.items()}
    weights["embed_tokens.weight"][0] = 1
    save_file(weights, folder / "a.safetensors")
    torch.save({"model": weights}, folder / "b.pt")


def field(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if os.fork() == 0:  # so that this process never holds the model
    make()
    os._exit(0)
os.wait()
convert(sys.argv[2], folder / "warm")
for name, to, dtype in (("a.safetensors", "retnet", None), ("b.pt", "retnet", torch.bfloat16),
                        ("a.safetensors-ours", "torchscale", None)):
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = field("VmRSS")
    said = SAID if to == "retnet" else {}
    convert(folder / name, folder / f"{name}-ours", to=to, answers=said, dtype=dtype)
    print(name, field("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory from Linux's /proc")
def test_memory_is_that_of_a_tensor_and_not_of_the_model(tmp_path: Path) -> None:
    """A model of 52 MB, whose largest tensor has 4 MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, SOURCE],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    grown = {line.split()[0]: int(line.split()[1]) for line in done.stdout.splitlines()}
    largest, window = 4096 * 256 * 4, 1 << 24
    assert len(grown) == 3
    for name, num_bytes in grown.items():
        assert num_bytes < 1.3 * largest + window, (name, num_bytes)


def test_a_converted_file_is_what_safetensors_writes(tmp_path: Path) -> None:
    model = converted(tmp_path, "torchscale_options")
    save_checkpoint(tmp_path / "saved", model)
    ours, saved = (
        tmp_path / name / "model.safetensors" for name in ("torchscale_options", "saved")
    )
    same(load_file(ours), load_file(saved))
    assert ours.stat().st_size == saved.stat().st_size
    with safe_open(ours, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert (ours.parent / "config.json").read_text() == (saved.parent / "config.json").read_text()
    assert ours.stat().st_mode & 0o777 == saved.stat().st_mode & 0o777


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_can_be_written_in_another_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    convert(SOURCE, tmp_path / "ours", dtype=dtype)
    want = converted(tmp_path, "torchscale_options").state_dict()
    same(
        load_checkpoint(tmp_path / "ours")[0].state_dict(),
        {name: x.to(dtype) for name, x in want.items()},
    )


def test_an_export_in_another_dtype_leaves_tables_of_angles_exact(tmp_path: Path) -> None:
    """In half precision the positions beyond 256 would fall together."""
    converted(tmp_path, "torchscale_options")
    convert(
        tmp_path / "torchscale_options", tmp_path / "out", to="torchscale", dtype=torch.bfloat16
    )
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["embed_tokens.weight"].dtype == torch.bfloat16
    want = golden_weights("torchscale_options")["retnet_rel_pos.angle"]
    assert torch.equal(tensors["retnet_rel_pos.angle"], want)


def test_one_foreign_format_becomes_another_in_one_step(tmp_path: Path) -> None:
    convert(FOLDER / "syncdoth_glu.safetensors", tmp_path / "out", to="torchscale")
    convert(tmp_path / "out", tmp_path / "ours")
    same(
        load_checkpoint(tmp_path / "ours")[0].state_dict(),
        converted(tmp_path, "syncdoth_glu").state_dict(),
    )


def test_a_full_folder_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "runs"
    target.mkdir()
    (target / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is not empty; give another folder, or --force"):
        convert(SOURCE, target)
    assert [path.name for path in target.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="is a file; give a folder"):
        convert(SOURCE, target / "notes.txt")
    with pytest.raises(ValueError, match="source and target are both"):
        convert(target, target, force=True)


def test_force_replaces_the_model_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "run"
    save_checkpoint(target, decoder(config(vocab_size=257), torch.float32), Tokenizer.bytes())
    (target / "notes.txt").write_text("mine", encoding="utf-8")
    convert(SOURCE, target, force=True)
    names = sorted(path.name for path in target.iterdir())
    assert names == ["config.json", "model.safetensors", "notes.txt"]
    same(
        load_checkpoint(target)[0].state_dict(),
        converted(tmp_path, "torchscale_options").state_dict(),
    )


def test_an_empty_folder_may_be_the_target(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    convert(SOURCE, tmp_path / "ours")
    load_checkpoint(tmp_path / "ours")


@pytest.mark.parametrize("exists", [False, True])
def test_a_conversion_that_breaks_off_leaves_what_was_there(exists: bool, tmp_path: Path) -> None:
    target = tmp_path / "ours"
    if exists:
        save_checkpoint(target, decoder(config(), torch.float32))
    before = {path.name: path.read_bytes() for path in target.iterdir()} if exists else {}

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(SOURCE, target, force=True, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"] * exists
    if exists:
        assert {path.name: path.read_bytes() for path in target.iterdir()} == before


def test_a_target_is_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that one is in, and a link to one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "here")
    for target in (Path(), tmp_path / "link"):
        convert(SOURCE.resolve(), target)
        assert (target / "model.safetensors").exists()
    assert (tmp_path / "link").is_symlink()


def test_a_target_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be written: .*Not a directory"):
        convert(SOURCE, tmp_path / "file" / "ours")


def test_progress_counts_bytes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = convert(SOURCE, tmp_path / "ours", progress=lambda *step: seen.append(step))
    total = sum(entry.num_bytes for entry in report.entries.values())
    assert len(seen) == len(report.entries)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def with_vocabulary(folder: Path) -> Path:
    """A torchscale folder of 300 tokens."""
    model = Decoder(config({"theta": "linspace", "pairs": "interleaved"}, vocab_size=300))
    layer = model.config.layers[0]
    model = Decoder(config(layers=(layer,), vocab_size=300))
    save_checkpoint(folder / "model", model)
    options: Any = {"to": "torchscale"}
    convert(folder / "model", folder / "theirs", **options)
    return folder / "theirs"


def test_a_tokenizer_comes_along_or_is_given(tmp_path: Path) -> None:
    theirs = with_vocabulary(tmp_path)
    report = convert(theirs, tmp_path / "none")
    assert report.tokenizer.startswith("none; give one with --tokenizer")
    with pytest.raises(ValueError, match="copy the tokenizer there, or do without"):
        load(tmp_path / "none")
    assert convert(theirs, tmp_path / "bytes", tokenizer="bytes").tokenizer == "bytes as tokens"
    assert load(tmp_path / "bytes")[1].decode([65]) == "A"
    words = Tokenizer.train_bpe(["some words to train with"], 270)
    words.save(tmp_path / "words")
    convert(theirs, tmp_path / "named", tokenizer=str(tmp_path / "words" / "tokenizer.json"))
    assert load(tmp_path / "named")[1].fingerprint == words.fingerprint
    words.save(theirs)
    convert(theirs, tmp_path / "found")
    assert load(tmp_path / "found")[1].fingerprint == words.fingerprint
    convert(tmp_path / "found", tmp_path / "back", to="torchscale")
    assert Tokenizer.load(tmp_path / "back").fingerprint == words.fingerprint


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(bytes as tokens\) has 257 ids, and the model reads 9"):
        convert(SOURCE, tmp_path / "ours", tokenizer="bytes")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").write_bytes(SOURCE.read_bytes())
    (tmp_path / "theirs" / "tokenizer.model").write_bytes(b"sentencepiece")
    assert "tokenizer.model is not read" in convert(tmp_path / "theirs", tmp_path / "o").tokenizer


def test_all_that_is_missing_is_asked_for_at_once(tmp_path: Path) -> None:
    file = FOLDER / "torchscale_v1.safetensors"
    with pytest.raises(MissingAnswers) as error:
        convert(file, tmp_path / "ours")
    message = str(error.value)
    assert "--set no_scale_embedding=...   true (RetNetConfig's default) or false" in message
    assert "--set head_norm_eps=..." in message
    assert "activation_fn" not in message  # its config says
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"no_scale_embedding": "maybe"}, "--set no_scale_embedding=maybe must be of type bool"),
        ({"layernorm_eps": "nan"}, "--set layernorm_eps=nan must be of type float"),
        ({"activation_fn": "tanh"}, r"activation_fn \('tanh', --set\) cannot be converted"),
        ({"layernorm_epsilon": "1e-5"}, "--set layernorm_epsilon is not an option"),
        ({"decoder_retention_heads": "8"}, "heads is 8 in --set, and 4 by retnet_rel_pos.decay"),
    ],
)
def test_answers_are_checked(answers: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        convert(SOURCE, tmp_path / "ours", answers=answers)


def test_the_user_knows_better_than_the_config(tmp_path: Path) -> None:
    report = convert(SOURCE, tmp_path / "ours", answers={"activation_fn": "relu"})
    assert report.config.layers[0].channel.activation == "relu"  # type: ignore[union-attr]
    [answer] = [answer for answer in report.answers if answer.name == "activation_fn"]
    assert answer == ("activation_fn", "relu", "--set")


def test_unknown_formats_are_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='no format "gguf"; choose one of retnet, torchscale'):
        convert(SOURCE, tmp_path / "ours", to="gguf")


@pytest.mark.parametrize("format_", FORMATS.values(), ids=list(FORMATS))
def test_formats_are_named_as_they_are_found(format_: Format) -> None:
    assert FORMATS[format_.name] is format_
    assert len(format_.title) <= 90
