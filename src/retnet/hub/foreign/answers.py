"""What the weights do not say: taken from the source's config or the user, never guessed."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

ASK = object()
"""No default: without an answer there is no conversion."""

_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Question(NamedTuple):
    """An option of the source that changes what it computes.

    Attributes:
        name: the source's own word for it, which is also its key in the config.
        kind: bool, int, float or str.
        usual: values it usually has, and where, for whoever must answer.
        default: taken, and reported, where the answer is missing; only for what every writer of
            the format agrees on.
        choices: all values that can be converted; empty for any.
        least: the smallest value that means anything; None for any.
        stored: what the config says of it in another place than under its name; None if nothing.
    """

    name: str
    kind: type
    usual: str
    default: Any = ASK
    choices: tuple[Any, ...] = ()
    least: float | None = None
    stored: Any = None


class Answer(NamedTuple):
    """A line of the report: what an option is, and who said so."""

    name: str
    value: Any
    origin: str


class MissingAnswers(ValueError):
    """Options that neither the weights nor the config tell; the message lists them all."""


class Answers:
    """The words of the user first, then those of the source's config.

    Attributes:
        taken: what was asked for so far, for the report.
    """

    def __init__(self, given: Mapping[str, str], config: Mapping[str, Any], origin: str) -> None:
        """Note what was said.

        Args:
            given: the user's, in text.
            config: the source's own configuration.
            origin: where that is, for the report.
        """
        self.taken: dict[str, Answer] = {}
        self._given, self._config, self._origin = dict(given), config, origin

    def read(self, *questions: Question) -> dict[str, Any]:
        """Answer questions.

        Raises:
            MissingAnswers: some have none; the message lists them with their usual values.
            ValueError: an answer is none of the choices, or of another type.
        """
        missing = []
        for question in questions:
            answer = self._find(question)
            if answer is None:
                missing.append(question)
            else:
                self.taken[question.name] = answer
        if missing:
            lines = (f"  --set {q.name}=...   {q.usual}" for q in missing)
            raise MissingAnswers(
                "the weights do not say these, and neither does a config; look them up where the "
                "model was trained, and give:\n" + "\n".join(lines)
            )
        return {question.name: self.taken[question.name].value for question in questions}

    def take(self, name: str, value: Any, why: str = "the weights") -> Any:
        """Note an option that was read off the weights, and return it.

        Raises:
            ValueError: the user or the config says otherwise.
        """
        said = self._find(Question(name, type(value), "", default=value))
        assert said is not None
        if said.value != value:
            raise ValueError(
                f"{name} is {said.value} in {said.origin}, and {value} by {why}; the two do not "
                "belong to the same model: correct the config, or override it with "
                f"--set {name}={value}"
            )
        self.taken[name] = Answer(name, value, why)
        return value

    def refuse_unused(self) -> None:
        """Make sure that every word of the user's was understood.

        Raises:
            ValueError: the source has no such option.
        """
        for name in self._given.keys() - self.taken.keys():
            known = ", ".join(sorted(self.taken)) or "none"
            raise ValueError(
                f"--set {name} is not an option of this checkpoint; its options are {known}"
            )

    def _find(self, question: Question) -> Answer | None:
        if question.name in self._given:
            value, origin = _parse(question, self._given[question.name]), "--set"
        elif (stored := self._stored(question)) is not None:
            value, origin = _typed(question, stored, self._origin), self._origin
        elif question.default is not ASK:
            return Answer(question.name, question.default, "default of the format")
        else:
            return None
        if question.choices and value not in question.choices:
            raise ValueError(
                f"{question.name} ({value!r}, {origin}) cannot be converted; it must be one of "
                f"{', '.join(map(repr, question.choices))}"
            )
        if question.least is not None and value < question.least:
            raise ValueError(
                f"{question.name} ({value}, {origin}) must be at least {question.least}; correct "
                f"it with --set {question.name}=..."
            )
        return Answer(question.name, value, origin)

    def _stored(self, question: Question) -> Any:
        values = [x for x in (question.stored, self._config.get(question.name)) if x is not None]
        if len(values) == 2 and values[0] != values[1]:
            raise ValueError(
                f"{question.name} is {values[0]} and {values[1]} in {self._origin}; say which with "
                f"--set {question.name}=..."
            )
        return values[0] if values else None


def _parse(question: Question, text: str) -> Any:
    try:
        if question.kind is bool:
            return _TRUTH[text.lower()]
        value = question.kind(text)
    except (ValueError, KeyError):
        value = math.nan
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"--set {question.name}={text} must be of type {question.kind.__name__}")
    return value


def _typed(question: Question, value: Any, origin: str) -> Any:
    if question.kind is float and type(value) is int and abs(value) < 2**63:
        value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) is not question.kind or not finite:
        raise ValueError(
            f"{question.name} ({value!r}) of {origin} must be of type {question.kind.__name__}; "
            f"correct it, or override it with --set {question.name}=..."
        )
    return value
