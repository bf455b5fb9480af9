import gzip
import json
import os
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from retnet.evaluate.probes import (
    IGNORED,
    PROBES,
    Probe,
    modular_arithmetic,
    mqar,
    needle,
    one_question,
    position,
)
from retnet.evaluate.probes.listops import IDS, WORDS, draw_tree, value


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows_of(probe: Probe, length: int, rows: int = 20) -> list[tuple[list[int], list[int]]]:
    examples = probe.make(rows, length, generator())
    return list(zip(examples.tokens.tolist(), examples.targets.tolist(), strict=True))


def answers(targets: list[int]) -> list[int]:
    return [target for target in targets if target != IGNORED]


def sample(name: str) -> list[dict]:
    """Examples that others made to the same definition."""
    folder = os.environ.get("RETNET_SYNTHETIC")
    if folder is None:
        pytest.skip("RETNET_SYNTHETIC names no folder with samples of ListOps and MQAR")
    with gzip.open(Path(folder) / name, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
def test_every_probe_makes_rows_of_its_length_and_vocabulary_and_the_same_again(
    probe: Probe,
) -> None:
    for length in {probe.shortest, probe.train_length, probe.train_length + 1} - {129}:
        if probe.name == "position" and length > probe.vocab_size:
            continue
        one, other = (probe.make(3, length, generator(5)) for _ in range(2))
        assert one.tokens.shape == one.targets.shape == (3, length)
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.targets, other.targets)
        assert one.mask.any(1).all()
        assert 0 <= int(one.tokens.min()) <= int(one.tokens.max()) < probe.vocab_size
        asked = one.targets[one.mask]
        assert 0 <= int(asked.min()) <= int(asked.max()) < probe.vocab_size
        if probe.name != "position":
            another = probe.make(3, probe.train_length, generator(6))
            first = probe.make(3, probe.train_length, generator(5))
            assert not torch.equal(another.tokens, first.tokens)


@pytest.mark.parametrize("probe", PROBES.values(), ids=PROBES.keys())
def test_a_length_without_examples_is_refused(probe: Probe) -> None:
    with pytest.raises(ValueError, match=rf"length \({probe.shortest - 1}\) must be at least"):
        probe.make(1, probe.shortest - 1, generator())


def check_mqar(tokens: list[int], targets: list[int], K: int, V: int) -> None:
    """The definition of MQAR, row by row, without random places."""
    keys, values = tokens[0 : 2 * K : 2], tokens[1 : 2 * K : 2]
    assert len(set(keys)) == len(set(values)) == K
    assert all(1 <= key < V // 2 for key in keys)
    assert all(V // 2 <= value < V for value in values)
    known = dict(zip(keys, values, strict=True))
    asked = [t for t, target in enumerate(targets) if target != IGNORED]
    assert len(asked) == K
    assert all(t >= 2 * K and t % 2 == 0 for t in asked)
    assert sorted(tokens[t] for t in asked) == sorted(keys)
    assert all(targets[t] == known[tokens[t]] for t in asked)


@pytest.mark.parametrize("length", [64, 129])
def test_mqar_is_as_defined(length: int) -> None:
    for tokens, targets in rows_of(mqar(vocab_size=100), length):
        check_mqar(tokens, targets, length // 16, 100)
        asked = {t for t, target in enumerate(targets) if target != IGNORED}
        assert not any(tokens[t] for t in range(2 * (length // 16), length) if t not in asked)


def test_mqar_with_filler_asks_the_same_and_fills_the_rest() -> None:
    for tokens, targets in rows_of(mqar(vocab_size=100, pairs=3, filler=True), 64):
        check_mqar(tokens, targets, 3, 100)
        assert tokens.count(0) < 10


@pytest.mark.parametrize(("length", "pairs"), [(64, 4), (128, 8), (256, 16)])
def test_mqar_asks_as_late_as_the_samples_do(length: int, pairs: int) -> None:
    def places(rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        found = [t for _, targets in rows for t, x in enumerate(targets) if x != IGNORED]
        return torch.tensor(found).double()

    samples = sample(f"mqar-{length}-{pairs}-sample.jsonl.gz")
    theirs = [(row["inputs"], row["labels"]) for row in samples]
    for tokens, targets in theirs:
        check_mqar(tokens, targets, pairs, 8192)
    ours = rows_of(mqar(), length, rows=200)
    a, b = places(theirs).log(), places(ours).log()
    spread = (a.var() / len(a) + b.var() / len(b)).sqrt()
    assert abs(a.mean() - b.mean()) < 4 * spread


def test_the_question_comes_first_or_last_and_the_answer_is_its_value() -> None:
    for first in (True, False):
        for tokens, targets in rows_of(one_question(first=first, vocab_size=40), 22):
            assert tokens[0] == 0  # the odd one
            body = tokens[1:]
            ask = body.index(1)
            assert ask == (0 if first else len(body) - 3)
            context = body[2:-1] if first else body[:-3]
            pairs = dict(zip(context[::2], context[1::2], strict=True))
            assert len(pairs) == 9
            assert all(3 <= key < 21 <= value < 40 for key, value in pairs.items())
            assert answers(targets) == [targets[-1]] == [pairs[body[ask + 1]]]
            assert body[-1] == 2


def test_more_pairs_than_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="9 different tokens were asked for and there are 8"):
        one_question(first=True, vocab_size=20).make(1, 21, generator())


def test_the_needle_lies_at_its_depth() -> None:
    for depth, place in ((0.0, 0), (0.5, 4), (1.0, 7)):
        for tokens, targets in rows_of(needle(depth=depth), 10):
            assert tokens[place] == 1
            assert tokens.count(1) == tokens.count(0) == 1
            assert tokens[-1] == 0
            assert answers(targets) == [targets[-1]] == [tokens[place + 1]]
    places = {tokens.index(1) for tokens, _ in rows_of(needle(), 10, rows=200)}
    assert places == set(range(8))
    with pytest.raises(ValueError, match=r"depth \(2.0\) must be from 0 to 1"):
        needle(depth=2.0)


REWRITTEN = {"copying": list, "reverse": lambda x: x[::-1], "sort": sorted}


@pytest.mark.parametrize("name", REWRITTEN)
def test_strings_are_written_again(name: str) -> None:
    for length, padding in ((16, 0), (17, 1)):
        for tokens, targets in rows_of(PROBES[name], length):
            assert tokens[:padding] == [0] * padding
            x, y = tokens[padding : padding + 8], tokens[padding + 9 :]
            assert tokens[padding + 8] == 1
            assert all(letter >= 2 for letter in x)
            assert answers(targets) == targets[-8:] == REWRITTEN[name](x)
            assert y == REWRITTEN[name](x)[:-1]


def test_repeated_text_is_asked_for_but_its_first_token() -> None:
    for tokens, targets in rows_of(PROBES["repeated"], 9):
        assert tokens[:4] == tokens[4:8]
        assert tokens[8] == tokens[0]
        assert targets == [IGNORED] * 4 + tokens[1:4] + [IGNORED] * 2


def test_machines_of_few_states_are_right() -> None:
    for n in (1, 2, 9, 30):
        for tokens, targets in rows_of(PROBES["even-pairs"], n + 1):
            changes = sum(a != b for a, b in pairwise(tokens[:-1]))
            assert answers(targets) == [targets[-1]] == [int(changes % 2 == 0)]
        for tokens, targets in rows_of(PROBES["parity"], n + 1):
            assert answers(targets) == [int(tokens[:-1].count(1) % 2 == 0)]
        for tokens, targets in rows_of(PROBES["cycle-navigation"], n + 1):
            assert answers(targets) == [(tokens[:-1].count(1) - tokens[:-1].count(2)) % 5]
        for tokens, targets in rows_of(modular_arithmetic(), n + 1):
            letters = ["01234+-* "[token] for token in tokens[:-1]]
            assert answers(targets) == [eval("".join(letters).strip()) % 5]


def test_each_answer_of_a_machine_comes_up_about_equally_often() -> None:
    for name in ("even-pairs", "parity", "cycle-navigation"):
        probe = PROBES[name]
        found = Counter(answers(targets)[0] for _, targets in rows_of(probe, 41, rows=1000))
        assert len(found) * probe.chance == 1
        assert max(found.values()) / 1000 < 1.25 * probe.chance


def test_lists_have_the_values_of_the_samples() -> None:
    for row in sample("listops-sample.jsonl.gz"):
        words = row["source"].split()
        assert value(words) == row["target"]
        assert len(words) == row["length"]
        assert set(words) <= set(WORDS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7),
        ("[SM 9 9 9 ]", 7),
        ("[MED 1 2 ]", 1),
        ("[MED 9 1 4 ]", 4),
        ("[MIN [MAX 3 5 ] [MED 0 9 8 9 ] ]", 5),
    ],
)
def test_a_list_has_the_value_that_its_operators_say(text: str, expected: int) -> None:
    assert value(text.split()) == expected


@pytest.mark.parametrize("text", ["", "3 4", "[MIN 3", "[MIN ]", "]", "[AVG 3 ]"])
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no single tree|does not fit there"):
        value(text.split())


def test_drawn_lists_are_asked_for_at_their_end_and_padded() -> None:
    for tokens, targets in rows_of(PROBES["listops"], 60):
        end = max(t for t, token in enumerate(tokens) if token) + 1
        assert 15 < end <= 60
        words = [WORDS[token] for token in tokens[:end]]
        assert words[-1] == "]"
        assert answers(targets) == [targets[end - 1]] == [IDS[str(value(words))]]


def test_drawn_lists_nest_and_branch_as_defined() -> None:
    chance = random.Random(0)
    depths, counts = set(), set()
    for _ in range(30):
        open_lists: list[int] = []
        for word in draw_tree(chance, shortest=50, longest=400):
            if word.startswith("["):
                if open_lists:
                    open_lists[-1] += 1
                open_lists.append(0)
                depths.add(len(open_lists))
            elif word == "]":
                counts.add(open_lists.pop())
            else:
                open_lists[-1] += 1
    assert counts == set(range(2, 11))
    assert max(depths) <= 9


def test_drawn_lists_are_like_the_samples() -> None:
    samples = sample("listops-sample.jsonl.gz")
    chance = random.Random(0)
    ours = [draw_tree(chance, shortest=501, longest=1999) for _ in range(40)]
    theirs = [row["source"].split() for row in samples]

    def shares(trees: list[list[str]]) -> dict[str, float]:
        counted = Counter(word for tree in trees for word in tree)
        return {word: counted[word] / counted.total() for word in WORDS[1:]}

    a, b = shares(ours), shares(theirs)
    assert all(abs(a[word] - b[word]) < 0.01 for word in a)
    lengths = [sum(map(len, trees)) / len(trees) for trees in (ours, theirs)]
    assert abs(lengths[0] / lengths[1] - 1) < 0.2


def test_positions_are_asked_for_in_a_text_of_equal_tokens() -> None:
    assert rows_of(position(longest=4), 4, rows=1) == [([0, 1, 1, 1], [0, 1, 2, 3])]
    assert rows_of(position(longest=4, bos=False), 3, rows=1) == [([1, 1, 1], [0, 1, 2])]
    with pytest.raises(ValueError, match=r"length \(5\) must be at most 4"):
        position(longest=4).make(1, 5, generator())
