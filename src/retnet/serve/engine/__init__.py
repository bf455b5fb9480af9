"""The engine: continuous batching of texts whose states have a constant size."""

from retnet.serve.engine.config import EngineConfig, EngineStats
from retnet.serve.engine.engine import Engine
from retnet.serve.engine.grammar import Grammar, Grammars
from retnet.serve.engine.request import (
    ErrorEvent,
    Event,
    FinishEvent,
    Handle,
    PromptEvent,
    Request,
    TokenEvent,
    TokenLogprob,
    Usage,
)
from retnet.serve.engine.scheduler import QueueFull

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineStats",
    "ErrorEvent",
    "Event",
    "FinishEvent",
    "Grammar",
    "Grammars",
    "Handle",
    "PromptEvent",
    "QueueFull",
    "Request",
    "TokenEvent",
    "TokenLogprob",
    "Usage",
]
