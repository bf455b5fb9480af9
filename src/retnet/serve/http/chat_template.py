"""Chat templates: from messages to tokens."""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from retnet.data import Tokenizer


class Message(NamedTuple):
    """What somebody says in a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


PLAIN = """\
{%- for message in messages -%}
{{ "" if loop.first else "\n\n" }}\
{{ message.role | capitalize }}:\n{{ message.content }}
{%- endfor -%}
{{ "\n\nAssistant:\n" if add_generation_prompt else "" }}"""
"""For models that learnt to continue text: what a transcript looks like."""

PLAIN_STOP = ("\n\nUser:",)
"""Where a transcript's next turn begins."""


class ChatTemplate:
    """Turns messages into the tokens that a model answers to.

    Special tokens come from the template alone: in a message their names are ordinary text.

    Attributes:
        stop: strings that end an answer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take the tokenizer's own template, or a plain one if it has none.

        Raises:
            ValueError: the template is wrong.
        """
        self._tokenizer = tokenizer
        self._special = tokenizer.special_ids
        own = tokenizer.chat_template
        self.stop = () if own else PLAIN_STOP
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
        environment.globals.update(raise_exception=_raise, strftime_now=_now)
        try:
            self._template = environment.from_string(own or PLAIN)
        except jinja2.TemplateError as error:
            raise ValueError(f"the tokenizer's chat_template is wrong: {error}") from error

    def begin(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of a chat up to where the assistant's answer begins; BOS is the first.

        Raises:
            ValueError: the template refuses the messages.
        """
        tokens = self._encode(*self._render(messages))
        bos = self._tokenizer.bos_id
        return tokens if tokens[:1] == [bos] else [bos, *tokens]

    def go_on(self, messages: Sequence[Message], tail: str) -> list[int]:
        """Tokens of new messages after an answer, up to where the next answer begins.

        Args:
            messages: the new ones.
            tail: text that the model wrote after its answer's end, and remembers: a stop string.

        Raises:
            ValueError: the template refuses the messages, or does not show the answer as it is.
        """
        answer = f"{secrets.token_hex(16)}"
        before = [Message("user", "."), Message("assistant", answer)]
        text, mark = self._render([*before, *messages])
        if text.count(answer) != 1:
            raise ValueError("the chat template does not show answers as they are: use no session")
        rest = text.partition(answer)[2]
        return self._encode(rest.removeprefix(tail), mark)

    def _render(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The text, in which a mark stands in each special token's name that is not one."""
        mark = "".join(chr(0xE000 + secrets.randbelow(0x1900)) for _ in range(12))
        shown = [
            {"role": role, "content": _marked(content, self._special, mark)}
            for role, content in messages
        ]
        names = {"bos_token": self._tokenizer.bos_token, "eos_token": self._tokenizer.eos_token}
        try:
            text = self._template.render(messages=shown, add_generation_prompt=True, **names)
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"the chat template refuses these messages: {error}") from error
        return text, mark

    def _encode(self, text: str, mark: str) -> list[int]:
        tokens = []
        for piece in _split(text, self._special):
            if piece in self._special:
                tokens.append(self._special[piece])
            else:
                tokens += self._tokenizer.encode(piece.replace(mark, ""))
        return tokens


def _marked(content: str, special: Mapping[str, int], mark: str) -> str:
    for name in special:
        content = content.replace(name, name[0] + mark + name[1:])
    return content


def _split(text: str, special: Mapping[str, int]) -> list[str]:
    names = sorted(special, key=len, reverse=True)
    pattern = "|".join(map(re.escape, names))
    return [piece for piece in re.split(f"({pattern})", text) if piece] if names else [text]


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def message_of(role: str, content: Any) -> Message:
    """A message as an API has it: text, or parts of text; developers speak as the system."""
    if not isinstance(content, str):
        content = "".join(part.text for part in content)
    role = "system" if role == "developer" else role
    assert role in ("system", "user", "assistant")
    return Message(role, content)
