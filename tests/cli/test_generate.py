import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from retnet.cli.status import FAILED, OK
from retnet.hub import load
from retnet.model.generation import Completion, generate
from retnet.model.sampling import Sampling
from retnet.model.steps import pack
from retnet.ops.packed_linear import Weights

Run = Callable[..., tuple[int, str, str]]

PLAIN = ("--temperature", 1, "--top-p", 1)


def library(
    checkpoint: Path, prompt: str, num_samples: int = 1, **kwargs: object
) -> list[Completion]:
    sampling = Sampling(seed=3, **kwargs)  # type: ignore[arg-type]
    return generate(
        *load(checkpoint), [prompt], max_tokens=40, sampling=sampling, num_samples=num_samples
    )[0]


def test_output_is_the_librarys_text_and_nothing_else(run: Run, checkpoint: Path) -> None:
    [completion] = library(checkpoint, "def ")
    words = ("generate", checkpoint, "--prompt", "def ", "--max-tokens", 40, "--seed", 3, *PLAIN)
    status, out, _ = run(*words)
    assert status == OK
    assert out == completion.text + "\n"


def test_every_setting_reaches_the_library(run: Run, checkpoint: Path) -> None:
    settings = {
        "temperature": 1.3,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.001,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
    }
    [completion] = library(checkpoint, "x", **settings)
    words: list[object] = [w for k, v in settings.items() for w in (f"--{k.replace('_', '-')}", v)]
    _, out, _ = run(
        "generate", checkpoint, "--prompt", "x", "--max-tokens", 40, "--seed", 3, *words
    )
    assert out == completion.text + "\n"


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_weights_may_be_packed(run: Run, checkpoint: Path, weights: Weights) -> None:
    model, tokenizer = load(checkpoint)
    sampling = Sampling(temperature=0.0)
    [[want]] = generate(pack(model, weights), tokenizer, ["def "], max_tokens=9, sampling=sampling)
    words = ("generate", checkpoint, "--prompt", "def ", "--max-tokens", 9, "--temperature", 0)
    status, out, _ = run(*words, "--weights", weights)
    assert (status, out) == (OK, want.text + "\n")


def test_several_samples_come_one_after_the_other(run: Run, checkpoint: Path) -> None:
    texts = [sample.text for sample in library(checkpoint, "a", num_samples=3)]
    words = ("generate", checkpoint, "--prompt", "a", "--max-tokens", 40, "--seed", 3, *PLAIN)
    _, out, _ = run(*words, "--num-samples", 3)
    assert out == f"{texts[0]}\n--- 2 of 3 ---\n{texts[1]}\n--- 3 of 3 ---\n{texts[2]}\n"


def test_a_dash_reads_the_prompt_from_standard_input(
    run: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("generate", checkpoint, "--max-tokens", 40, "--seed", 3)
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert run(*words, "--prompt", "-")[:2] == run(*words, "--prompt", "from a pipe")[:2]


def test_every_stop_text_ends_it(run: Run, checkpoint: Path) -> None:
    words = ("generate", checkpoint, "--max-tokens", 40, "--seed", 3)
    _, out, _ = run(*words)
    early, late = out[5], out[20]
    _, stopped, _ = run(*words, "--stop", late, "--stop", early)
    assert stopped == out[: min(out.index(early), out.index(late))] + "\n"


def test_pace_and_memory_are_told_apart_from_the_text(run: Run, checkpoint: Path) -> None:
    _, _, err = run("generate", checkpoint, "--max-tokens", 40, "--seed", 3)
    for part in ("40 tokens", " tokens/s", " ms per token", "state ", "at any length"):
        assert part in err


def test_nothing_to_write_is_no_error(run: Run, checkpoint: Path) -> None:
    status, out, err = run("generate", checkpoint, "--max-tokens", 0)
    assert (status, out) == (OK, "\n")
    assert err.startswith("0 tokens, state ")


def test_a_setting_outside_its_range_is_refused_before_the_model_is_read(run: Run) -> None:
    status, _, err = run("generate", "nowhere", "--top-p", 2)
    assert status == FAILED
    assert "top_p (2.0) must be above 0 and at most 1" in err
