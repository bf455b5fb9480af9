"""A client of the server's HTTP, no more than a clock needs."""

import http.client
import json
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

ANSWER_S = 120.0


class Broken(Exception):
    """The connection ended before the answer did."""


class Left(Exception):
    """The client went away, as it wanted to."""


@dataclass
class Answer:
    """What came back.

    Attributes:
        status: of HTTP; an error in the middle of a stream counts as 500.
        text: of a completion.
        body: the whole answer, or the error, or what the frames of a stream had beside text.
        first_s: from the request to the first piece of text of a stream.
        gaps_s: between its pieces.
        seconds: from the request to the end.
        retry_s: when a client that was refused may come again.
    """

    status: int
    text: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    first_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    retry_s: float = 0.0


class Client:
    """One connection, made anew for each request unless it is kept."""

    def __init__(self, port: int, *, keep: bool = False) -> None:
        """Name a server of this machine."""
        self._port = port
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None

    def complete(
        self, body: dict[str, Any], *, leave_after: int | None = None, leave_s: float | None = None
    ) -> Answer:
        """Ask for a completion.

        Args:
            body: of the request.
            leave_after: go away after so many frames of a stream.
            leave_s: go away after so many seconds without an answer.

        Raises:
            Broken: see there.
            Left: likewise.
        """
        begin = perf_counter()
        try:
            reply = self._send("POST", "/v1/completions", body, leave_s)
            if reply.status != 200 or not body.get("stream"):
                answer = _whole(reply)
            else:
                answer = _stream(reply, begin, leave_after)
        except TimeoutError as error:
            self.close()
            if leave_s is not None:
                raise Left from error
            raise Broken("no answer") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Broken(f"{type(error).__name__}: {error}") from error
        except (Left, Broken):
            self.close()
            raise
        if not self._keep:
            self.close()
        answer.seconds = perf_counter() - begin
        return answer

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page."""
        return self._plain("GET", path)

    def delete(self, path: str) -> int:
        """Status of a deletion."""
        return self._plain("DELETE", path)[0]

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _plain(self, method: str, path: str) -> tuple[int, bytes]:
        try:
            reply = self._send(method, path, None, None)
            return reply.status, reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        finally:
            self.close()

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float | None
    ) -> http.client.HTTPResponse:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port)
        self._connection.timeout = ANSWER_S if seconds is None else seconds
        if self._connection.sock is not None:
            self._connection.sock.settimeout(self._connection.timeout)
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, {"Content-Type": "application/json"})
        return self._connection.getresponse()


def _whole(reply: http.client.HTTPResponse) -> Answer:
    body = json.loads(reply.read())
    text = body["choices"][0]["text"] if reply.status == 200 else ""
    return Answer(reply.status, text, body, retry_s=float(reply.getheader("Retry-After") or 0))


def _stream(reply: http.client.HTTPResponse, begin: float, leave_after: int | None) -> Answer:
    answer, last, frames, done = Answer(200), begin, 0, False
    while line := reply.readline():
        if not line.startswith(b"data: "):
            continue
        if line == b"data: [DONE]\n":
            done = True
            continue
        frames += 1
        content = json.loads(line[6:])
        if "error" in content:
            answer.status = 500
        for choice in content.get("choices", ()):
            if choice["text"]:
                answer.text += choice["text"]
                now = perf_counter()
                if answer.first_s is None:
                    answer.first_s = now - begin
                else:
                    answer.gaps_s.append(now - last)
                last = now
        answer.body |= content
        if leave_after is not None and frames >= leave_after:
            raise Left
    if not done:
        raise Broken("the stream ended before its last frame")
    return answer
