"""What the clients of load and soak take an answer for; the server here says what it is told to."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email import message_from_bytes

import pytest

from retnet.bench.serving.client import Broken, Client, Left

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
STREAM = {"stream": True}


@contextmanager
def says(*parts: bytes) -> Iterator[Client]:
    """A client of someone who sends these bytes to whoever comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as asked:
                # To close on bytes unread would reset the connection, answer and all.
                head = b"".join(iter(asked.readline, b"\r\n"))
                asked.read(int(message_from_bytes(head.split(b"\r\n", 1)[1])["Content-Length"]))
                with suppress(ConnectionError):  # who leaves early does not take the rest
                    for part in parts:
                        connection.sendall(part)

        thread = threading.Thread(target=answer)
        thread.start()
        yield Client(listening.getsockname()[1])
        thread.join()


def frame(text: str, **more: object) -> bytes:
    content = {"choices": [{"text": text, "finish_reason": None}], **more}
    return f"data: {json.dumps(content)}\n\n".encode()


def test_a_stream_is_whole_with_its_last_frame() -> None:
    kept = {"name": "s", "version": 3}
    with (
        says(HEAD + b"\r\n", frame("a"), b": ping\n\n", frame("b")) as client,
        pytest.raises(Broken, match="before its last frame"),
    ):
        client.complete(STREAM)
    done = b"data: [DONE]\n\n"
    with says(HEAD + b"\r\n", frame("a"), frame("b", session=kept), done) as client:
        answer = client.complete(STREAM)
    assert (answer.status, answer.text, answer.body["session"]) == (200, "ab", kept)
    assert answer.first_s is not None
    assert len(answer.gaps_s) == 1


def test_an_error_in_a_stream_is_an_error() -> None:
    error = b'data: {"error": {"message": "the engine failed"}}\n\ndata: [DONE]\n\n'
    with says(HEAD + b"\r\n", frame("a"), error) as client:
        assert client.complete(STREAM).status == 500


def test_a_body_that_is_cut_is_broken() -> None:
    with (
        says(HEAD + b"Content-Length: 50\r\n\r\n", b'{"choices": [') as client,
        pytest.raises(Broken, match="IncompleteRead"),
    ):
        client.complete({})


def test_who_is_refused_learns_when_to_come_again() -> None:
    head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 2\r\nContent-Length: 2\r\n\r\n{}"
    with says(head) as client:
        answer = client.complete({})
    assert (answer.status, answer.retry_s) == (429, 2.0)


def test_a_client_leaves_after_some_frames_or_some_time() -> None:
    with says(HEAD + b"\r\n", *(10 * [frame("a")])) as client, pytest.raises(Left):
        client.complete(STREAM, leave_after=2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(silent.getsockname()[1])
        with pytest.raises(Left):
            client.complete({}, leave_s=0.01)


def test_nobody_at_the_address_is_a_broken_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with pytest.raises(Broken, match="Refused"):
        Client(port).complete({})
