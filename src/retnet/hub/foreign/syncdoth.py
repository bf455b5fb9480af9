"""syncdoth/RetNet, a port of torchscale to `transformers`: same names under `model.`."""

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

NAMES = Names("model.", "lm_head.weight", "tie_word_embeddings")
EMBEDDING = "model.embed_tokens.weight"


def _recognise(source: Source) -> str | None:
    if "model.layers.0.retention.q_proj.weight" not in source.entries:
        return None
    glu = "model.layers.0.ffn.gate.weight" in source.entries
    return "syncdoth/RetNet" + (", gated" if glu else ", plain feed-forward network")


def _describe(source: Source, answers: Answers) -> Translation:
    if "model.layers.0.retention.q_proj.bias" in source.entries:
        raise ValueError(
            "model.layers.0.retention.q_proj.bias: syncdoth/RetNet of 2023, with biases, is not "
            "converted; its names lack nothing but a prefix: strip `model.` for torchscale's"
        )
    config = describe(source, answers, NAMES, first=False)
    stored = NAMES.head in source.entries
    found = (*rules(config, "model."), *ends(config, EMBEDDING, NAMES.head, stored))
    return Translation(config, found, derived=stored_tables(source, "model."))


def _express(config: DecoderConfig, answers: Answers) -> Translation:  # noqa: ARG001
    options = express(config, "syncdoth")
    mixer, channel = config.branches[0]
    assert isinstance(mixer, RetentionConfig)
    glu = not isinstance(channel, FFNConfig)
    refuse(
        "syncdoth",
        (mixer.bias, "projections with biases"),
        (config.norm != "rms", f'norm = "{config.norm}"'),
        (mixer.theta != "linspace", f'theta = "{mixer.theta}"'),
        (mixer.decay not in ("pow2", "linspace"), f'decay = "{mixer.decay}"'),
        (config.residual == "post", 'residual = "post"'),
        (
            options["subln"] and options["decoder_ffn_embed_dim"] != config.d_model,
            "inner norms of another width than d_model",
        ),
    )
    found = (*rules(config, "model."), *ends(config, EMBEDDING, NAMES.head, head_stored=False))
    described = {
        "model_type": "retnet",
        "architectures": ["RetNetForCausalLM"],
        **options,
        "use_glu": glu,
        "use_lm_decay": mixer.decay == "linspace",
        "tie_word_embeddings": config.tie_embeddings,
    }
    return Translation(config, found, described, tables(config, "model."))


def _to_ours(state: Any, config: DecoderConfig, position: int | None) -> DecoderState:
    return from_official(list(state), config, position)


def _to_theirs(state: DecoderState, config: DecoderConfig) -> tuple[Any, ...]:
    return tuple(to_official(state, config))


SYNCDOTH = Format(
    name="syncdoth",
    title="syncdoth/RetNet, the port to transformers",
    recognise=_recognise,
    describe=_describe,
    express=_express,
    states=States(_to_ours, _to_theirs),
)
