"""microsoft/torchscale's `RetNetDecoder`, both layouts, and fairseq's containers around it.

The first layout (to September 2023) has biases, LayerNorms and a plain feed-forward network; the
current one has none of these, RMSNorms and a gated network.
"""

from typing import Any

from retnet.hub.foreign.answers import Answers
from retnet.hub.foreign.common import ends, refuse
from retnet.hub.foreign.format import Format, States, Translation
from retnet.hub.foreign.official import Names, describe, express, rules, stored_tables, tables
from retnet.hub.foreign.states import from_official, to_official
from retnet.hub.foreign.tensors import Source
from retnet.mixers.channel import FFNConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import DecoderConfig, DecoderState

TIED = "share_decoder_input_output_embed"
QUERIES = "layers.0.retention.q_proj"


def _recognise(source: Source) -> str | None:
    for prefix in ("", "decoder."):
        if f"{prefix}{QUERIES}.weight" in source.entries:
            first = f"{prefix}{QUERIES}.bias" in source.entries
            layout = "first layout, with biases" if first else "current layout"
            return f"torchscale, {layout}" + (", in fairseq's container" if prefix else "")
    return None


def _names(source: Source) -> Names:
    prefix = "" if f"{QUERIES}.weight" in source.entries else "decoder."
    return Names(prefix, f"{prefix}output_projection.weight", TIED)


def _describe(source: Source, answers: Answers) -> Translation:
    names = _names(source)
    first = f"{names.prefix}{QUERIES}.bias" in source.entries
    config = describe(source, answers, names, first)
    stored = names.head in source.entries
    embedding = f"{names.prefix}embed_tokens.weight"
    found = (*rules(config, names.prefix), *ends(config, embedding, names.head, stored))
    return Translation(config, found, derived=stored_tables(source, names.prefix))


def _express(config: DecoderConfig, answers: Answers) -> Translation:  # noqa: ARG001
    options = express(config, "torchscale")
    mixer, channel = config.branches[0]
    assert isinstance(mixer, RetentionConfig)
    first = mixer.bias
    refuse(
        "torchscale",
        (first != (config.norm == "layer"), f'norm = "{config.norm}" with bias = {first}'),
        (
            first != isinstance(channel, FFNConfig),
            f"channel mixer {type(channel).__name__} with bias = {first}",
        ),
        (
            first and options["decoder_value_embed_dim"] != 2 * config.d_model,
            "values of another width than 2 d_model in its first layout",
        ),
    )
    head = "output_projection.weight"
    found = (*rules(config, ""), *ends(config, "embed_tokens.weight", head, head_stored=True))
    described = {**options, TIED: config.tie_embeddings}
    return Translation(config, found, described, tables(config, ""))


def _to_ours(state: Any, config: DecoderConfig, position: int | None) -> DecoderState:
    layers = [state[index] for index in range(config.num_layers) if index in state]
    return from_official(layers, config, position)


def _to_theirs(state: DecoderState, config: DecoderConfig) -> dict[int, Any]:
    layers = to_official(state, config)
    return {
        index: {**layer, "scale": layer["scale"].flatten()} for index, layer in enumerate(layers)
    }


TORCHSCALE = Format(
    name="torchscale",
    title="microsoft/torchscale RetNetDecoder, its first and its current layout; fairseq's files",
    recognise=_recognise,
    describe=_describe,
    express=_express,
    states=States(_to_ours, _to_theirs),
)
