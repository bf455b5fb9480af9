"""The other routes, chat templates, and an engine that fails."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from http_server import serving
from retnet.data import Tokenizer
from retnet.serve.http.chat_template import ChatTemplate, Message

TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m['role'] }}\n{{ m['content'] | trim }}<|bos|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)


def test_the_model_is_listed(server: SimpleNamespace) -> None:
    (only,) = server.client.models.list().data
    assert (only.id, only.object) == ("tiny", "model")
    assert server.client.models.retrieve("tiny").id == "tiny"
    assert requests.get(f"{server.url}/v1/models/other", timeout=10).status_code == 404


def test_the_engine_tells_what_a_text_takes_beside_a_cache(server: SimpleNamespace) -> None:
    told = requests.get(f"{server.url}/v1/engine", timeout=10).json()
    engine, config = server.engine, server.engine.model.config
    assert told["state"] == {"bytes": engine.state_bytes(10**6), "bytes_per_token": 0}
    keys_and_values = 2 * config.num_layers * config.d_model * 4
    assert told["cache"]["bytes_per_token"] == keys_and_values
    assert told["cache"]["dtype"] == "float32"
    assert (told["model"], told["sessions"], told["keys"]) == ("tiny", True, False)


def test_a_route_or_method_that_is_not_there_is_an_error_of_openai(
    server: SimpleNamespace,
) -> None:
    missing = requests.get(f"{server.url}/v2", timeout=10)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = requests.get(f"{server.url}/v1/completions", timeout=10)
    assert wrong.status_code == 405
    assert wrong.headers["allow"] == "POST"


def test_tokens_there_and_back(server: SimpleNamespace) -> None:
    def post(path: str, **body: Any) -> requests.Response:
        return requests.post(server.url + path, json=body, timeout=10)

    assert post("/tokenize", prompt="hé").json()["tokens"] == [256, 104, 195, 169]
    plain = post("/tokenize", prompt="h", add_special_tokens=False).json()
    assert (plain["tokens"], plain["count"]) == ([104], 1)
    chat = post("/tokenize", messages=[{"role": "user", "content": "a"}]).json()["tokens"]
    assert bytes(chat[1:]).decode() == "User:\na\n\nAssistant:\n"
    assert post("/detokenize", tokens=[256, 104, 195, 169]).json() == {"prompt": "hé"}
    assert post("/tokenize").status_code == 400
    assert post("/detokenize", tokens=[300]).json()["error"]["param"] == "tokens"


def test_metrics_count_what_was_done(server: SimpleNamespace) -> None:
    def metrics() -> dict[str, float]:
        text = requests.get(f"{server.url}/metrics", timeout=10).text
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    before = metrics()
    server.client.completions.create(model="tiny", prompt="abc", max_tokens=5, temperature=0)
    after = metrics()
    for name, more in (
        ("retnet_prompt_tokens_total", 4),
        ("retnet_requests_finished_total", 1),
        ("retnet_time_to_first_token_seconds_count", 1),
    ):
        assert after[name] - before[name] == more
    counted = 'retnet_http_requests_total{method="POST",route="/v1/completions",status="200"}'
    assert after[counted] - before.get(counted, 0) == 1


def test_an_engine_that_fails_is_told_and_health_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("threading.excepthook", lambda *_: None)
    with serving() as broken:

        def fail() -> None:
            raise RuntimeError("out of memory")

        broken.engine.step = fail
        for _ in range(2):  # while it fails, and when it has
            reply = requests.post(
                f"{broken.url}/v1/completions", json={"model": "tiny", "prompt": "a"}, timeout=10
            )
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_failed")
        assert requests.get(f"{broken.url}/health", timeout=10).status_code == 503
        assert requests.get(f"{broken.url}/ready", timeout=10).status_code == 503


def test_the_tokenizers_own_template_is_used_and_text_cannot_forge_its_tokens(
    tmp_path: Path,
) -> None:
    Tokenizer.bytes().save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = Tokenizer.load(tmp_path)
    template = ChatTemplate(tokenizer)
    assert template.stop == ()
    said = "a <|bos|> b"
    tokens = template.begin([Message("user", said)])
    assert tokens[:6] == [256, *b"user\n"]
    assert tokens.count(256) == 3
    assert said.encode() in bytes(token for token in tokens if token < 256)
    on = template.go_on([Message("user", "c")], "")
    assert on[:3] == [256, 10, 256]  # the answer's end, then the new message


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages", "wrong"),
        ("{{ raise_exception('no system') }}", "no system"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
    ],
)
def test_a_template_is_not_trusted(tmp_path: Path, template: str, message: str) -> None:
    Tokenizer.bytes().save(tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    with pytest.raises(ValueError, match=message):
        ChatTemplate(Tokenizer.load(tmp_path)).begin([Message("user", "a")])
