"""Grammars that a text must match, compiled once and followed token by token (llguidance)."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from retnet.model.reply import Tokenizer


@runtime_checkable
class ServedTokenizer(Tokenizer, Protocol):
    """What the engine needs of a tokenizer; `retnet.data.Tokenizer` has it."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...


FUEL, STEP_FUEL = 100_000, 20_000
"""Work that llguidance may do for a grammar at first, and for one token. All texts wait for it: at
its own limits, ten times these, one regular expression stops a server for seconds."""


class Grammar(NamedTuple):
    """What a text must match, in the words of llguidance; `Grammars` makes and checks them."""

    source: str


class Grammars:
    """Compiles grammars for the tokens of one tokenizer.

    Raises:
        ValueError: llguidance is not installed.
    """

    def __init__(self, tokenizer: ServedTokenizer) -> None:
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise ValueError(
                "grammars need llguidance, which is not installed; pip install 'retnet[serve]'"
            ) from error
        self._matcher = llguidance.LLMatcher
        self._limits = llguidance.LLParserLimits(
            initial_lexer_fuel=FUEL, step_lexer_fuel=STEP_FUEL, verbose_errors=False
        )
        self._tokens = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(tokenizer)),
            n_vocab=tokenizer.vocab_size,
            eos_token=list(tokenizer.end_ids),
        )

    def json_schema(self, schema: Mapping[str, Any] | bool) -> Grammar:
        """JSON that matches a schema; `{}` or `{"type": "object"}` for any.

        Raises:
            ValueError: the schema is wrong, or uses what llguidance does not support.
        """
        source = self._matcher.grammar_from_json_schema(json.dumps(schema))
        return self._checked(source, "json_schema")

    def regex(self, pattern: str) -> Grammar:
        """All of a text must match the pattern, in the syntax of Rust's `regex`.

        Raises:
            ValueError: the pattern is wrong.
        """
        return self._checked(self._matcher.grammar_from_regex(pattern), "regex")

    def choice(self, choices: Sequence[str]) -> Grammar:
        """One of some texts.

        Raises:
            ValueError: there is none, or one is empty.
        """
        if not choices or "" in choices:
            raise ValueError(f"choices {list(choices)} must be at least one text, none empty")
        texts = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return self._checked(self._matcher.grammar_from_lark(f"start: {texts}"), "choice")

    def lark(self, grammar: str) -> Grammar:
        """A grammar in the syntax of Lark, as llguidance reads it.

        Raises:
            ValueError: the grammar is wrong.
        """
        return self._checked(self._matcher.grammar_from_lark(grammar), "lark")

    def start(self, grammar: Grammar) -> "Matching":
        """Begin a text."""
        matcher = self._matcher(self._tokens, grammar.source, log_level=0, limits=self._limits)
        return Matching(matcher, self._tokens.vocab_size)

    def _checked(self, source: str, kind: str) -> Grammar:
        if message := self._matcher.validate_grammar(source, self._tokens, limits=self._limits):
            raise ValueError(f"{kind} is not one that can be followed: {message}")
        return Grammar(source)


class Matching:
    """One text on its way through a grammar."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._size = vocab_size

    @property
    def is_complete(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def allowed(self) -> Bool[Tensor, " V"]:
        """Which tokens may follow; end tokens among them where the text may end.

        Raises:
            ValueError: the grammar has become too large to follow.
        """
        words = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.int32)
        if self._matcher.is_error():
            raise ValueError(f"the grammar cannot be followed: {self._matcher.get_error()}")
        bits = words[:, None] >> torch.arange(32, dtype=torch.int32)
        return (bits & 1).bool().flatten()[: self._size]

    def take(self, token: int) -> None:
        """Go on; the token is an allowed one."""
        self._matcher.consume_token(token)


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    def __init__(self, tokenizer: ServedTokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.end_ids[0]
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.id_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i, text in enumerate(self.tokens) if not text]
        for i in self.special_token_ids:  # llguidance: a special token has bytes, after 0xFF
            self.tokens[i] = f"\xff<{i}>".encode("latin-1")

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode(errors="replace"))
