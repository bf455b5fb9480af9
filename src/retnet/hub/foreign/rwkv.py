"""RWKV-4 (Peng et al. 2023, arXiv:2305.13048): three ways to write one model.

BlinkDL's `.pth` files, rwkv.cpp's `.bin` files, and `RwkvForCausalLM` of transformers have the same
tensors under other names. Their inference may divide the weights of later layers by powers of two
against overflow; that is not done here, and never belongs into a file.

Sources: BlinkDL/RWKV-LM 524481d, RWKV/rwkv.cpp 4358e70, transformers 5.23.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from retnet.hub.foreign import rwkv_states
from retnet.hub.foreign.answers import Answers, Question
from retnet.hub.foreign.common import (
    differences,
    is_tied,
    matrix,
    num_layers,
    refuse,
    sizes_agree,
    uniform_branches,
)
from retnet.hub.foreign.format import Format, States, Translation
from retnet.hub.foreign.rules import SAME, Change, Rule, Shaped, Tied, one
from retnet.hub.foreign.rwkv_cpp_file import save_rwkv_cpp
from retnet.hub.foreign.tensors import Entry, Source
from retnet.hub.foreign.writers import save_torch
from retnet.mixers.rwkv import RWKVConfig
from retnet.mixers.rwkv_channel import RWKVFFNConfig
from retnet.model import DecoderConfig, LayerConfig

EPS = Question("layer_norm_epsilon", float, "1e-5 (all of them)", default=1e-5, least=0)
CONTEXT = Question("context_length", int, "1024; no limit here", default=1024)
RESCALE = Question("rescale_every", int, "0, or 6 against overflow in float16", default=0)

TOKENIZERS = {
    50277: "20B_tokenizer.json (in BlinkDL/RWKV-LM)",
    65536: "rwkv_vocab_v20230424.txt (in pip's package rwkv)",
}

DEEPSPEED = "_forward_module."
PROJECTIONS = {"k": "key", "v": "value", "r": "receptance", "o": "output"}
OF_TRANSFORMERS = (
    (r"^emb\.", "embeddings."),
    (r"\.ln0\.", ".pre_ln."),
    (r"\.att\.", ".attention."),
    (r"\.ffn\.", ".feed_forward."),
    (r"time_mix_k$", "time_mix_key"),
    (r"time_mix_v$", "time_mix_value"),
    (r"time_mix_r$", "time_mix_receptance"),
)

Rename = Callable[[str], str]


class LogOfDecay:
    """Ours is d, theirs the logarithm of the decay per token, `-exp(d)`.

    Theirs holds fewer digits of a d near 0. Of the numbers that give it, the one with the fewest
    digits is taken, so that the way back gives theirs to the bit.
    """

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        [x] = theirs
        if x.is_meta:
            return (x,)
        if not bool((x < 0).all()):
            raise ValueError("decays must be below 0 in a file of rwkv.cpp; it is damaged")
        d = (-x.double()).log().to(x.dtype)
        up, down = torch.full_like(d, torch.inf), torch.full_like(d, -torch.inf)
        tried = [d.bfloat16().to(d), d.half().to(d), d, d.nextafter(up), d.nextafter(down)]
        for other in reversed(tried):
            d = other.where(_log_decay(other) == x, d)
        return (d,)

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return tuple(x if x.is_meta else _log_decay(x) for x in ours)


def _log_decay(d: Tensor) -> Tensor:
    return -d.float().exp().to(d)


def _official(source: Source) -> Rename:
    deepspeed = any(name.startswith(DEEPSPEED) for name in source.entries)
    return lambda name: DEEPSPEED * deepspeed + name


def _transformers(name: str) -> str:
    if name == "head.weight":
        return name
    for pattern, new in OF_TRANSFORMERS:
        name = re.sub(pattern, new, name)
    return f"rwkv.{name}"


def _is_rwkv_cpp(source: Source) -> bool:
    return "rwkv.cpp" in source.config


def _recognise_official(source: Source) -> str | None:
    if _is_rwkv_cpp(source) or _official(source)("blocks.0.att.time_decay") not in source.entries:
        return None
    return "RWKV-4 of BlinkDL"


def _recognise_rwkv_cpp(source: Source) -> str | None:
    if not _is_rwkv_cpp(source):
        return None
    return f"RWKV-4 of rwkv.cpp, version {source.config['rwkv.cpp']}, {source.config['data_type']}"


def _recognise_transformers(source: Source) -> str | None:
    known = _transformers("blocks.0.att.time_decay") in source.entries
    return "RWKV-4 of transformers" if known else None


def _config(source: Source, answers: Answers, rename: Rename, *, tied: bool) -> DecoderConfig:
    vocab_size, d_model = matrix(source, rename("emb.weight"))
    width, _ = matrix(source, rename("blocks.0.att.key.weight"))
    inner, _ = matrix(source, rename("blocks.0.ffn.key.weight"))
    layers = num_layers(source.entries, rename("blocks.0.").removesuffix("0."))
    sizes_agree(
        answers,
        vocab_size=vocab_size,
        hidden_size=d_model,
        num_hidden_layers=layers,
        attention_hidden_size=width,
        intermediate_size=inner,
    )
    layer = LayerConfig(
        mixer=RWKVConfig(width=None if width == d_model else width),
        channel=RWKVFFNConfig(width=inner),
        repeat=layers,
    )
    return DecoderConfig(
        d_model=d_model,
        layers=(layer,),
        vocab_size=vocab_size,
        norm="layer",
        norm_eps=answers.read(EPS)["layer_norm_epsilon"],
        embed_norm=True,
        tie_embeddings=tied,
        init="retnet" if tied else "rwkv",
    )


def _describe_official(source: Source, answers: Answers) -> Translation:
    rename = _official(source)
    config = _config(source, answers, rename, tied=False)
    return Translation(config, _rules(config, rename, Shaped(theirs=(1, 1, -1), ours=(-1,))))


def _describe_rwkv_cpp(source: Source, answers: Answers) -> Translation:
    config = _config(source, answers, str, tied=False)
    said = tuple(source.config[name] for name in ("n_vocab", "n_embed", "n_layer"))
    found = config.vocab_size, config.d_model, config.num_layers
    if said != found:
        raise ValueError(
            f"{source.path}: the header says vocabulary, width and layers are {said}, and the "
            f"tensors say {found}; fetch it again"
        )
    return Translation(config, _rules(config, str, SAME, LogOfDecay()))


def _describe_transformers(source: Source, answers: Answers) -> Translation:
    embedding, head = (_transformers(name) for name in ("emb.weight", "head.weight"))
    tied = is_tied(source, answers, "tie_word_embeddings", embedding, head)
    config = _config(source, answers, _transformers, tied=tied)
    shaped = Shaped(theirs=(1, 1, -1), ours=(-1,))
    head_stored = head in source.entries
    return Translation(config, _rules(config, _transformers, shaped, head_stored=head_stored))


def _express_official(config: DecoderConfig, answers: Answers) -> Translation:  # noqa: ARG001
    _check(config, "rwkv4", eps=1e-5, tied=False)
    return Translation(config, _rules(config, str, Shaped(theirs=(1, 1, -1), ours=(-1,))))


def _express_rwkv_cpp(config: DecoderConfig, answers: Answers) -> Translation:  # noqa: ARG001
    _check(config, "rwkv-cpp", eps=1e-5, tied=False)
    return Translation(config, _rules(config, str, SAME, LogOfDecay()))


def _express_transformers(config: DecoderConfig, answers: Answers) -> Translation:
    mixer, channel = _check(config, "rwkv-hf", eps=config.norm_eps, tied=config.tie_embeddings)
    described = {
        "model_type": "rwkv",
        "architectures": ["RwkvForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "attention_hidden_size": mixer.width or config.d_model,
        "intermediate_size": channel.width,
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **answers.read(CONTEXT, RESCALE),
    }
    shaped = Shaped(theirs=(1, 1, -1), ours=(-1,))
    return Translation(config, _rules(config, _transformers, shaped), described)


def _check(
    config: DecoderConfig, name: str, *, eps: float, tied: bool
) -> tuple[RWKVConfig, RWKVFFNConfig]:
    """Refuse what a file of RWKV-4 cannot say."""
    mixer, channel = uniform_branches(config, name)
    refuse(
        name,
        (not isinstance(mixer, RWKVConfig), "a mixer other than rwkv"),
        (not isinstance(channel, RWKVFFNConfig), "a channel mixer other than rwkv_ffn"),
    )
    plain = DecoderConfig(
        d_model=config.d_model,
        layers=config.layers,
        vocab_size=config.vocab_size,
        norm="layer",
        norm_eps=eps,
        embed_norm=True,
        tie_embeddings=tied,
    )
    refuse(
        name,
        *differences(mixer, RWKVConfig(width=mixer.width)),
        *differences(channel, RWKVFFNConfig(width=channel.width)),
        *differences(config, plain, "init", "dropout", "drop_path"),
    )
    return mixer, channel


def _rules(
    config: DecoderConfig,
    rename: Rename,
    mix: Change,
    decay: Change = SAME,
    *,
    head_stored: bool = True,
) -> tuple[Rule, ...]:
    """Which tensor is which, by BlinkDL's names."""
    ends = [one("embed_tokens.weight", "emb.weight"), one("lm_head.weight", "head.weight")]
    if config.tie_embeddings:
        both = Rule(("embed_tokens.weight",), ("emb.weight", "head.weight"), Tied())
        ends = [both] if head_stored else ends[:1]
    found = [*ends, *_norm("embed_norm", "blocks.0.ln0"), *_norm("norm", "ln_out")]
    for index in range(config.num_layers):
        layer, block = f"layers.{index}", f"blocks.{index}"
        found += _norm(f"{layer}.norms.0", f"{block}.ln1")
        found += _norm(f"{layer}.norms.1", f"{block}.ln2")
        time, att = f"{layer}.branches.0", f"{block}.att"
        found.append(one(f"{time}.time_decay", f"{att}.time_decay", decay))
        found.append(one(f"{time}.time_first", f"{att}.time_first"))
        channel, ffn = f"{layer}.branches.1", f"{block}.ffn"
        for ours, theirs, mixes, names in ((time, att, "kvr", "kvro"), (channel, ffn, "kr", "kvr")):
            found += [one(f"{ours}.mix_{x}", f"{theirs}.time_mix_{x}", mix) for x in mixes]
            found += [
                one(f"{ours}.{x}_proj.weight", f"{theirs}.{PROJECTIONS[x]}.weight") for x in names
            ]
    return tuple(rule._replace(theirs=tuple(map(rename, rule.theirs))) for rule in found)


def _norm(ours: str, theirs: str) -> list[Rule]:
    return [one(f"{ours}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]


def _dtype_of_rwkv_cpp(name: str, entry: Entry) -> torch.dtype:  # noqa: ARG001
    return torch.float32 if len(entry.shape) == 1 else entry.dtype


RWKV4 = Format(
    name="rwkv4",
    title="RWKV-4 of BlinkDL (.pth: Pile, Raven, World)",
    recognise=_recognise_official,
    describe=_describe_official,
    express=_express_official,
    file="model.pth",
    save=save_torch,
    states=States(rwkv_states.from_pip, rwkv_states.to_pip),
    tokenizers=TOKENIZERS,
)

RWKV_HF = Format(
    name="rwkv-hf",
    title="RWKV-4 of transformers (RwkvForCausalLM)",
    recognise=_recognise_transformers,
    describe=_describe_transformers,
    express=_express_transformers,
    states=States(rwkv_states.from_transformers, rwkv_states.to_transformers),
    tokenizers=TOKENIZERS,
)

RWKV_CPP = Format(
    name="rwkv-cpp",
    title="RWKV-4 of rwkv.cpp (.bin: FP32, FP16)",
    recognise=_recognise_rwkv_cpp,
    describe=_describe_rwkv_cpp,
    express=_express_rwkv_cpp,
    file="model.bin",
    save=save_rwkv_cpp,
    dtype_of=_dtype_of_rwkv_cpp,
    states=States(rwkv_states.from_rows, rwkv_states.to_rows),
    tokenizers=TOKENIZERS,
)
