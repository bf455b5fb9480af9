"""From a body to what the engine is asked."""

from typing import Any

from fastapi import Request

from retnet.model import Sampling
from retnet.serve.engine import Engine, Grammar
from retnet.serve.http.carried import Carried
from retnet.serve.http.context import Context, context_of, owner_of
from retnet.serve.http.continuing import Continuing
from retnet.serve.http.errors import ApiError
from retnet.serve.http.keeping import Keeping, Unkept
from retnet.serve.http.schemas import (
    Choosing,
    ResponseFormat,
    StructuredOutputs,
    TextFormat,
    Writing,
)

FIELDS = {"num_samples": "n"}
"""Where the engine's name of a field is not the client's."""


def check_model(context: Context, model: str | None) -> None:
    """Refuse another model than ours."""
    if model not in (None, context.model):
        raise ApiError(
            404,
            f"there is no model {model!a}; this server has {context.model!a}",
            param="model",
            code="model_not_found",
        )


def keeping_of(request: Request, body: Writing) -> Keeping:
    """Where the text goes on from and where its state goes; an `Exchange` takes it over.

    Raises:
        ApiError: that is not possible.
        SessionError: no session can have this name.
    """
    context, carries = context_of(request), body.state is not None or bool(body.return_state)
    if body.n not in (None, 1):
        for param in ("session", "return_state"):
            if getattr(body, param):
                raise ApiError(400, f"{param} goes on with one text: leave n out", param="n")
    if body.session is not None:
        if carries:
            param = "return_state" if body.state is None else "state"
            raise ApiError(400, f"give session or {param}: one of us keeps the state", param=param)
        return Continuing(context, owner_of(request), body.session)
    if carries:
        return Carried(context, body.state, returns=bool(body.return_state))
    return Unkept()


def common(
    context: Context, body: Writing, keeping: Keeping, max_tokens: int, field: str = "max_tokens"
) -> dict[str, Any]:
    """The engine's arguments of completions and chats that do not depend on the route.

    Args:
        context: the server's parts.
        body: what the client sent.
        keeping: opened.
        max_tokens: as the body or the route has it.
        field: what the client calls that.
    """
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    return {
        **choosing(context, body, keeping, max_tokens, field),
        "stop": tuple(stop),
        "num_samples": 1 if body.n is None else body.n,
    }


def check(context: Context, body: Writing) -> None:
    """Refuse what needs no look at the prompt."""
    check_model(context, body.model)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream = true", param="stream_options")


def choosing(
    context: Context, body: Choosing, keeping: Keeping, max_tokens: int, field: str
) -> dict[str, Any]:
    """The engine's arguments that no route does without; see `common`."""
    most = context.limits.max_tokens
    if max_tokens > most:
        raise ApiError(400, f"{field} ({max_tokens}) must be at most {most} here", param=field)
    return {
        "state": keeping.before.state,
        "keep_state": keeping.keeps,
        "sampling": _sampling(body),
        "max_tokens": max_tokens,
        "logit_bias": {int(key): value for key, value in (body.logit_bias or {}).items()},
    }


def answer_tokens(context: Context, asked: int | None, prompt: int, keeping: Keeping) -> int:
    """How long an answer may be: as was asked for, or as long as answers are here."""
    if asked is not None:
        return asked
    most = min(context.limits.chat_tokens, context.limits.max_tokens)
    longest = context.worker.engine.max_context
    if longest is None:
        return most
    return max(1, min(most, longest - prompt - keeping.before.num_tokens))


def _sampling(body: Choosing) -> Sampling:
    names = (
        *("temperature", "top_p", "min_p"),
        *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    )
    given = {name: getattr(body, name) for name in names}
    floats = {name: float(value) for name, value in given.items() if value is not None}
    return Sampling(top_k=body.top_k or 0, seed=body.seed, **floats)


def grammar_of(
    engine: Engine,
    wanted: StructuredOutputs | None,
    form: ResponseFormat | TextFormat | None = None,
    field: str = "response_format",
) -> Grammar | None:
    """Compile what a text must match; slow for large grammars. `field` is where `form` stood."""
    wishes = {} if wanted is None else wanted.model_dump(exclude_none=True)
    param = "structured_outputs"
    if form is not None and form.type != "text":
        if wishes:
            raise ApiError(400, f"give {field} or structured_outputs", param=param)
        param, wishes = field, {"json_schema": _schema(form, field)}
    elif wanted is not None and len(wishes) != 1:
        raise ApiError(
            400, f"structured_outputs must have exactly one field, not {len(wishes)}", param=param
        )
    if not wishes:
        return None
    ((kind, value),) = wishes.items()
    try:
        grammars = engine.grammars
        compilers = {
            "json_schema": grammars.json_schema,
            "regex": grammars.regex,
            "choice": grammars.choice,
            "grammar": grammars.lark,
        }
        return compilers[kind](value)
    except ValueError as error:
        raise ApiError(400, str(error), param=param) from error


def _schema(form: ResponseFormat | TextFormat, field: str) -> dict[str, Any]:
    if form.type == "json_object":
        return {"type": "object"}
    if isinstance(form, ResponseFormat) and form.json_schema is not None:
        return form.json_schema.schema_ or {}
    if isinstance(form, TextFormat) and form.schema_ is not None:
        return form.schema_
    needs = "json_schema" if isinstance(form, ResponseFormat) else "schema"
    raise ApiError(400, f"{field} of type json_schema needs {needs}", param=field)


def refused(error: ValueError, prompt_field: str) -> ApiError:
    """What the engine's refusal means for the client, who may know the field by another name."""
    word = str(error).split(" ", 1)[0]
    known = (*Writing.model_fields, "logprobs")
    field = FIELDS.get(word, word if word in known else prompt_field)
    return ApiError(400, str(error), param=field)
