"""Our own checkpoint folders, seen as one format among the others."""

from pathlib import Path

from retnet.hub.checkpoint import MODEL_TYPE, read_config
from retnet.hub.foreign.answers import Answers
from retnet.hub.foreign.format import Format, Translation
from retnet.hub.foreign.rules import Rule, one
from retnet.hub.foreign.shapes import decoder_entries
from retnet.hub.foreign.tensors import Source
from retnet.model import DecoderConfig


def _recognise(source: Source) -> str | None:
    return "retnet" if source.config.get("model_type") == MODEL_TYPE else None


def _describe(source: Source, answers: Answers) -> Translation:  # noqa: ARG001
    config = read_config(Path(source.path))
    return Translation(config, _rules(config))


def _express(config: DecoderConfig, answers: Answers) -> Translation:  # noqa: ARG001
    return Translation(config, _rules(config))


def _rules(config: DecoderConfig) -> tuple[Rule, ...]:
    return tuple(one(name, name) for name in decoder_entries(config))


OWN = Format(
    name="retnet",
    title="this library",
    recognise=_recognise,
    describe=_describe,
    express=_express,
)
