"""What is seen of a conversation that the server does not have as the client was told."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save

from retnet.bench.serving.client import Answer, Client
from retnet.bench.serving.conversation import Conversation, Said


class Told(Client):
    """A server's answers about one session."""

    def __init__(self, turns: list[tuple[int, int]], tokens: str, status: int = 200) -> None:
        super().__init__(0)
        self.status = status
        self.turns = [{"version": version, "num_tokens": count} for version, count in turns]
        self.tokens = torch.tensor([256, *tokens.encode()])

    def get(self, path: str) -> tuple[int, bytes]:
        if path.endswith("/state"):
            return 200, save({"tokens": self.tokens})
        return self.status, json.dumps({"turns": self.turns}).encode()


@pytest.fixture
def talk() -> Conversation:
    found = Conversation("talk")
    found.said = [Said("Hi", " you", 1, 7, 8), Said("So", "?", 2, 10, 8)]
    return found


def test_what_is_as_it_was_said_is_right(talk: Conversation) -> None:
    assert talk.check(Told([(1, 7), (2, 10)], "Hi youSo?")) == []
    assert Conversation("nothing said").check(Told([], "", 404)) == []


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (Told([], "", 404), "status 404, after 2 acknowledged turns"),
        (Told([(1, 7)], "Hi you"), "no version 2 of 10 tokens"),
        (Told([(1, 7), (2, 9)], "Hi youSo"), "no version 2 of 10 tokens"),
        (Told([(1, 7), (2, 10)], "Hi youNo?"), "version 2 has another text"),
        (Told([(1, 7), (2, 10), (3, 12)], "Hi youSo?!!"), "3 turns, of which 2 were said"),
    ],
)
def test_what_is_not_is_told(talk: Conversation, told: Client, why: str) -> None:
    (line,) = talk.check(told)
    assert why in line


def test_a_turn_that_nobody_was_told_of_may_be_kept(talk: Conversation) -> None:
    talk.doubts = 1
    assert talk.check(Told([(1, 7), (2, 10), (3, 12)], "Hi youSo?!!")) == []


class Writes(Told):
    """A server that answers a prompt with what it is told to."""

    def __init__(self, last: str, gap: float = 1.0) -> None:
        super().__init__([], "Hi you")
        self.last, self.gap = last, gap
        self.asked: list[dict[str, Any]] = []

    def complete(self, body: dict[str, Any], **_: Any) -> Answer:
        self.asked.append(body)
        top = {"a": -1.0, "b": -1.0 - self.gap}
        answer = {"choices": [{"logprobs": {"top_logprobs": [top]}}]}
        told = {"Hi": " you", "So": "?"}
        again = body.get("session", "").endswith("-again")
        prompt = body["prompt"]
        text = told.get(prompt, self.last if again else "more") if isinstance(prompt, str) else ""
        return Answer(200, text, answer)

    def delete(self, path: str) -> int:  # noqa: ARG002
        return 200


def test_a_replay_says_the_same_or_what_differs(talk: Conversation) -> None:
    assert talk.replay(Writes("more"), "m", "!") == ""
    assert talk.replay(Writes("less"), "m", "!") == "talk: 'more' and, replayed, 'less'"
    assert talk.replay(Writes("less", gap=1e-5), "m", "!") == "tie"
