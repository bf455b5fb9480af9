"""Routes that the engine does not work for: models, health, metrics, tokens."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from retnet.model import Decoder
from retnet.serve.http.asks import check_model
from retnet.serve.http.chat import messages_of
from retnet.serve.http.context import Context, context_of, owner_of
from retnet.serve.http.errors import ApiError, AsciiJSON
from retnet.serve.http.metrics import CONTENT_TYPE
from retnet.serve.http.schemas import DetokenizeBody, TokenizeBody

router = APIRouter()


def _model(context: Context) -> dict[str, Any]:
    return {
        "id": context.model,
        "object": "model",
        "created": context.created,
        "owned_by": "retnet",
    }


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The one model."""
    return AsciiJSON({"object": "list", "data": [_model(context_of(request))]})


@router.get("/v1/models/{model:path}")
async def model(model: str, request: Request) -> Response:
    """A model by name."""
    context = context_of(request)
    check_model(context, model)
    return AsciiJSON(_model(context))


@router.get("/v1/engine")
async def engine(request: Request) -> Response:
    """What a text's memory takes, beside a key-value cache; and what may be asked for."""
    context = context_of(request)
    engine, limits = context.worker.engine, context.limits
    empty = engine.state_bytes(0)
    return AsciiJSON(
        {
            "object": "engine",
            "model": context.model,
            "state": {"bytes": empty, "bytes_per_token": engine.state_bytes(1) - empty},
            "cache": _cache(engine.model),
            "limits": {
                "max_context": engine.max_context,
                "max_tokens": limits.max_tokens,
                "body_bytes": limits.body_bytes,
                "file_bytes": limits.body_bytes + limits.state_bytes,
            },
            "chat_template": context.tokenizer.chat_template is not None,
            "sessions": context.sessions is not None,
            "keys": owner_of(request) != "",
        }
    )


def _cache(model: Decoder) -> dict[str, Any]:
    """Keys and values of full multi-head attention of the model's width, depth and dtype."""
    config, dtype = model.config, model.embed_tokens.weight.dtype
    return {
        "bytes_per_token": 2 * config.num_layers * config.d_model * dtype.itemsize,
        "bytes_per_value": dtype.itemsize,
        "dtype": str(dtype).removeprefix("torch."),
        "layers": config.num_layers,
        "width": config.d_model,
    }


@router.get("/health")
async def health(request: Request) -> Response:
    """Whether the engine lives."""
    alive = context_of(request).worker.alive
    return AsciiJSON({"status": "ok" if alive else "failed"}, 200 if alive else 503)


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether a balancer should send requests here."""
    context = context_of(request)
    if context.draining or not context.worker.alive:
        return AsciiJSON({"status": "not ready"}, 503)
    return AsciiJSON({"status": "ready"})


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' format."""
    return Response(context_of(request).metrics.text(), media_type=CONTENT_TYPE)


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """Tokens of a text or a chat, as a request with it would read them."""
    context = context_of(request)
    check_model(context, body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give prompt or messages, one of the two", param="prompt")
    try:
        tokens = await asyncio.to_thread(_tokens, context, body)
    except ValueError as error:
        field = "prompt" if body.messages is None else "messages"
        raise ApiError(400, str(error), param=field) from error
    return AsciiJSON(
        {
            "tokens": tokens,
            "count": len(tokens),
            "max_model_len": context.worker.engine.max_context,
        }
    )


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> Response:
    """The text of some tokens."""
    context = context_of(request)
    check_model(context, body.model)
    try:
        data = b"".join(map(context.tokenizer.id_bytes, body.tokens))
    except ValueError as error:
        raise ApiError(400, str(error), param="tokens") from error
    return AsciiJSON({"prompt": data.decode(errors="replace")})


def _tokens(context: Context, body: TokenizeBody) -> list[int]:
    if body.messages is not None:
        return context.template.begin(messages_of(body.messages))
    assert body.prompt is not None
    bos = [] if body.add_special_tokens is False else [context.tokenizer.bos_id]
    return [*bos, *context.tokenizer.encode(body.prompt)]
