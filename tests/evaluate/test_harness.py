import json
import random
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from retnet.data import Tokenizer
from retnet.evaluate.evaluation import Wanted, evaluate
from retnet.evaluate.sections import sections
from retnet.evaluate.tasks import score_tasks, task_files
from retnet.hub import save_checkpoint
from retnet.model import Decoder, Sampling, generate, preset, rival

pytest.importorskip("lm_eval", reason="lm_eval is not installed; pip install 'retnet[eval]'")

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from retnet.evaluate.harness import RetNetLM

WORDS = ["the", "a", "cat", "dog", "house", "runs", "sleeps", "on", "under", "with", "red"]


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(words))


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files in the form of three kinds of tasks."""
    folder, chance = tmp_path_factory.mktemp("tasks"), random.Random(0)
    items: dict[str, list[dict]] = {"piqa": [], "winogrande": [], "lambada_openai": []}
    for n in range(12):
        items["piqa"].append(
            {"goal": text(chance, 1 + n), "sol1": text(chance, 3), "sol2": text(chance, 5),
             "label": chance.randint(0, 1)}
        )  # fmt: skip
        sentence = f"{text(chance, 3)} because _ {text(chance, 2)}"
        items["winogrande"].append(
            {"sentence": sentence, "option1": "cat", "option2": "dog", "answer": "12"[n % 2]}
        )
        items["lambada_openai"].append({"text": text(chance, 6 + n)})
    for name, lines in items.items():
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(content, encoding="utf-8")
    return task_files(folder)


@pytest.fixture(scope="module")
def trained() -> tuple[Decoder, Tokenizer]:
    chance = random.Random(1)
    tokenizer = Tokenizer.train_bpe([text(chance, 500)], 300)
    torch.manual_seed(0)
    base = preset("small-1m", vocab_size=tokenizer.vocab_size)
    return Decoder(replace(base, layers=(replace(base.layers[0], repeat=1),))).eval(), tokenizer


@pytest.fixture
def lm(trained: tuple[Decoder, Tokenizer]) -> RetNetLM:
    return RetNetLM(*trained)


@pytest.fixture(scope="module")
def their_lm(trained: tuple[Decoder, Tokenizer], tmp_path_factory: pytest.TempPathFactory) -> LM:
    """The harness's own wrapper around our folder."""
    from lm_eval.models.huggingface import HFLM

    import retnet.hf  # noqa: F401

    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder, *trained)
    wrapper: Any = HFLM  # its decorator hides what it takes
    return wrapper(pretrained=str(folder), batch_size=4, device="cpu", dtype="float32")


@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_the_harness_own_wrapper(
    trained: tuple[Decoder, Tokenizer], tasks: dict[str, Path]
) -> None:
    shots = 1
    wanted = Wanted(tasks=tasks["piqa"].parent, shots=shots, beside_hf=True)
    found = evaluate(*trained, wanted, name="one", bar=lambda *_: nullcontext(lambda *_: None))
    assert found.beside is not None
    ours, theirs = found.tasks, found.beside.scores
    assert [(s.task, s.metric) for s in ours] == [
        ("piqa", "acc"),
        ("piqa", "acc_norm"),
        ("winogrande", "acc"),
        ("lambada_openai", "acc"),
        ("lambada_openai", "perplexity"),
    ]
    for a, b in zip(ours, theirs, strict=True):
        if a.metric == "perplexity":
            assert a.value == pytest.approx(b.value, rel=1e-4)
        else:
            assert a == b
        assert (a.items, a.shots) == (12, shots)
    [section] = sections(found)
    assert section.columns[-1] == "by HFLM"
    assert [row[-1] for row in section.rows] == [*(row[2] for row in section.rows[:-1]), ""]
    assert "4 of 4 shares are equal to the last digit" in section.notes[-1]
    assert found.beside.seconds > 0 < found.beside.our_seconds
    assert found.as_json()["beside"]["scores"][0]["metric"] == "acc"


@pytest.mark.filterwarnings("ignore")
def test_likelihoods_are_those_of_the_harness_own_wrapper(lm: RetNetLM, their_lm: LM) -> None:
    pairs = [("the cat", " runs"), ("the cat ", "runs"), ("the", " dog sleeps on"), ("", "the cat")]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    ours = lm.loglikelihood(requests)
    theirs = their_lm.loglikelihood(requests)
    for (a, greedy), (b, likeliest) in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
        assert greedy == likeliest


def test_a_limit_leaves_items_out_and_nothing_is_fetched(
    lm: RetNetLM,
    tasks: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_: object) -> None:
        raise AssertionError("something asked for the network")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)
    [score] = score_tasks(lm, {"winogrande": tasks["winogrande"]}, limit=5)
    assert score.items == 5
    assert score.chance == 0.5
    assert capsys.readouterr().out == ""


def test_rolling_carries_the_state_through_long_texts(
    lm: RetNetLM, trained: tuple[Decoder, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = trained
    texts = ["the cat", text(random.Random(2), 40), ""]
    expected = []
    for string in texts:
        tokens = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(string)]])
        with torch.inference_mode():
            logits = model(tokens)[0][:, :-1].log_softmax(-1)
        expected.append(logits.gather(2, tokens[:, 1:, None]).sum().item())
    requests = [Instance("loglikelihood_rolling", {}, (string,), 0) for string in texts]
    assert lm.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)
    monkeypatch.setattr("retnet.evaluate.harness.CALL_TOKENS", 10)
    assert lm.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3)


def test_a_model_with_a_limit_reads_windows() -> None:
    base = preset("small-1m", vocab_size=257)
    config = rival(replace(base, layers=(replace(base.layers[0], repeat=1),)), "hyena", l_max=16)
    lm = RetNetLM(Decoder(config).eval(), Tokenizer.bytes())
    long = Instance("loglikelihood", {}, ("x" * 50, "yes"), 0)
    short = Instance("loglikelihood", {}, ("x" * 13, "yes"), 0)
    [(a, _), (b, _)] = lm.loglikelihood([long, short])
    assert a != b  # the one begins with BOS
    assert lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("x" * 50,), 0)])[0] < 0


def test_texts_end_at_the_strings_that_a_task_names(
    lm: RetNetLM, trained: tuple[Decoder, Tokenizer]
) -> None:
    greedy = Sampling(temperature=0.0)
    [[plain]] = generate(*trained, ["the cat"], max_tokens=9, sampling=greedy)
    stop = plain.text[3:5]
    settings = [
        {"until": [], "max_gen_toks": 9},
        {"until": [stop], "max_gen_toks": 9, "do_sample": False},
        {"until": [], "max_gen_toks": 3, "do_sample": True, "temperature": 0.5},
    ]
    requests = [Instance("generate_until", {}, ("the cat", s), 0) for s in settings]
    whole, cut, drawn = lm.generate_until(requests)
    assert whole == plain.text
    assert cut == plain.text[: plain.text.index(stop)]
    assert drawn == lm.generate_until(requests)[2]
    with pytest.raises(ValueError, match=r"generate with \['num_beams'\], which do not exist"):
        lm.generate_until([Instance("generate_until", {}, ("a", {"num_beams": 2}), 0)])
