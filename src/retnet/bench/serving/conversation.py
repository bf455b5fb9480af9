"""Conversations that a client remembers, to see later whether the server does."""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from safetensors.torch import load

from retnet.bench.serving.client import Client

TIE = 1e-3
"""Nats between the two best tokens below which a batch's rounding may decide."""


class Said(NamedTuple):
    """A turn that the server said it keeps.

    Attributes:
        prompt: what was sent.
        text: what came back.
        version: of the session after it.
        num_tokens: likewise.
        max_tokens: that were asked for.
    """

    prompt: str
    text: str
    version: int
    num_tokens: int
    max_tokens: int


class Conversation:
    """A session, as one client knows it.

    Attributes:
        name: of the session.
        said: turns that were acknowledged.
        doubts: turns that may or may not have been kept: the client left, or the server died.
    """

    def __init__(self, name: str) -> None:
        """Begin one that has no turn."""
        self.name = name
        self.said: list[Said] = []
        self.doubts = 0

    def body(self, model: str, prompt: str, max_tokens: int, *, stream: bool) -> dict[str, Any]:
        """The next turn's request; always the likeliest token."""
        return {
            "model": model,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": stream,
            "session": self.name,
            "temperature": 0,
        }

    def check(self, client: Client) -> list[str]:
        """Compare with what the server has: what is wrong, a line for each turn or session."""
        if not self.said:
            return []
        path = f"/v1/sessions/{self.name}"
        status, data = client.get(path)
        if status != 200:
            return [f"{self.name}: status {status}, after {len(self.said)} acknowledged turns"]
        turns = json.loads(data)["turns"]
        ends = {turn["version"]: turn["num_tokens"] for turn in turns}
        begins = dict(zip(ends, [0, *(turn["num_tokens"] for turn in turns[:-1])], strict=True))
        tokens = load(client.get(f"{path}/state")[1])["tokens"].tolist()
        wrong = []
        for turn in self.said:
            if ends.get(turn.version) != turn.num_tokens:
                wrong.append(f"{self.name}: no version {turn.version} of {turn.num_tokens} tokens")
                continue
            kept = _text(tokens[begins[turn.version] : turn.num_tokens])
            if kept != turn.prompt + turn.text:
                wrong.append(f"{self.name}: version {turn.version} has another text")
        if len(turns) > len(self.said) + self.doubts:
            wrong.append(f"{self.name}: {len(turns)} turns, of which {len(self.said)} were said")
        return wrong

    def replay(self, client: Client, model: str, more: str) -> str:
        """Have it all again, never interrupted, and go on with both; what differs, if anything.

        Returns:
            Nothing; `tie` where two tokens were equally likely; or the turn that differs.
        """
        again = Conversation(f"{self.name}-again")
        for turn in [*self.said, None]:
            prompt, most = (more, 24) if turn is None else (turn.prompt, turn.max_tokens)
            body = again.body(model, prompt, most, stream=False)
            second = client.complete(body).text
            first = turn.text if turn else client.complete(body | {"session": self.name}).text
            if first != second:
                _, data = client.get(f"/v1/sessions/{self.name}/state")
                _, other = client.get(f"/v1/sessions/{again.name}/state")
                tied = _tied(client, model, _tokens(data), _tokens(other))
                return "tie" if tied else f"{self.name}: {first!r} and, replayed, {second!r}"
        client.delete(f"/v1/sessions/{again.name}")
        return ""


def _tokens(data: bytes) -> list[int]:
    return load(data)["tokens"].tolist()


def _text(tokens: Sequence[int]) -> str:
    """Of tokens that are bytes; BOS is beyond them and says nothing."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


def _tied(client: Client, model: str, one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether the tokens after what two texts have in common are as good as equally likely."""
    same = 0
    while same < min(len(one), len(other)) and one[same] == other[same]:
        same += 1
    body = {"model": model, "prompt": list(one[:same]), "max_tokens": 1, "logprobs": 2}
    told = client.complete(body | {"temperature": 0}).body["choices"][0]["logprobs"]
    best, next_best = sorted(told["top_logprobs"][0].values(), reverse=True)[:2]
    return best - next_best < TIE
