"""Rotary frequencies in configs of transformers, old (`rope_scaling`) and new alike."""

import math
from typing import Any

from retnet.hub.foreign.answers import ASK, Answers, Question
from retnet.hub.foreign.tensors import Source
from retnet.ops.rope_scaling import TURNS, RoPEScaling

USUAL_BASE = 10_000.0
KINDS = ("default", "linear", "llama3", "yarn")


def read_rope(source: Source, answers: Answers) -> tuple[float, RoPEScaling | None]:
    """Base and scaling of a model's rotation.

    Raises:
        ValueError: a kind of scaling is not implemented as they have it.
    """
    said = {**_table(source, "rope_scaling"), **_table(source, "rope_parameters")}
    # configs before 2023 have no base, and mean the usual one
    default = USUAL_BASE if "model_type" in source.config else ASK
    usual = "10000 (Llama 1 and 2) or 500000 (Llama 3)"
    stored = said.pop("rope_theta", None)
    asked = Question("rope_theta", float, usual, default, least=1, stored=stored)
    base = answers.read(asked)["rope_theta"]
    kind = said.pop("rope_type", said.pop("type", "default"))
    said.pop("type", None)
    parts = said.pop("partial_rotary_factor", 1), source.config.get("partial_rotary_factor", 1)
    if kind not in KINDS or parts != (1, 1):
        raise ValueError(
            f'rope_type "{kind}" of {source.origin} cannot be converted; there are '
            f"{', '.join(KINDS)}, of whole heads (dynamic frequencies would have to turn keys that "
            "were turned before)"
        )
    try:
        scaling = _scaling(kind, said, source)
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f'rope_type "{kind}" of {source.origin}: {error} is missing or no number; correct it'
        ) from None
    if kind != "default":
        answers.take("rope_type", kind, source.origin)
    if said:
        raise ValueError(
            f"{', '.join(said)} of {source.origin} is not understood beside rope_type "
            f'"{kind}"; take it out if it changes nothing'
        )
    return base, scaling


def _table(source: Source, name: str) -> dict[str, Any]:
    found = source.config.get(name) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{name} ({found!r}) of {source.origin} must be a table; correct it")
    return dict(found)


def rope_config(base: float, scaling: RoPEScaling | None) -> dict[str, Any]:
    """What their config says of it; older versions read the same."""
    if scaling is None:
        return {"rope_theta": base, "rope_scaling": None}
    said: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind != "linear":
        few, many = scaling.turns or TURNS[scaling.kind]
        low, high = {
            "llama3": ("low_freq_factor", "high_freq_factor"),
            "yarn": ("beta_slow", "beta_fast"),
        }[scaling.kind]
        said |= {low: few, high: many, "original_max_position_embeddings": scaling.original_len}
    if scaling.kind == "yarn":
        said["attention_factor"] = scaling.table_scale
    return {"rope_theta": base, "rope_scaling": said}


def _scaling(kind: str, said: dict[str, Any], source: Source) -> RoPEScaling | None:
    """Take what a kind needs out of `said`."""
    if kind == "default":
        return None
    length = said.pop("original_max_position_embeddings", None)
    length = length or source.config.get("max_position_embeddings")
    if length is None or said.get("factor") is None:
        raise ValueError(
            f'rope_type "{kind}" of {source.origin} needs factor and '
            "original_max_position_embeddings; add what is missing"
        )
    factor, length = float(said.pop("factor")), int(length)
    if kind == "linear":
        return RoPEScaling(kind="linear", factor=factor, original_len=length)
    if kind == "llama3":
        turns = float(said.pop("low_freq_factor")), float(said.pop("high_freq_factor"))
        return RoPEScaling(kind="llama3", factor=factor, original_len=length, turns=turns)
    if said.pop("truncate", True) is not True:
        raise ValueError(
            f"truncate of {source.origin} must be true: bounds of pairs that are no whole numbers "
            "are not implemented"
        )
    few, many = TURNS["yarn"]
    few, many = said.pop("beta_slow", None) or few, said.pop("beta_fast", None) or many
    return RoPEScaling(
        kind="yarn",
        factor=factor,
        original_len=length,
        turns=(float(few), float(many)),
        score_scale=_attention_factor(factor, said),
    )


def _attention_factor(factor: float, said: dict[str, Any]) -> float:
    names = ("attention_factor", "mscale", "mscale_all_dim")
    given, mscale, of_all = (said.pop(name, None) for name in names)
    if given is not None:
        return float(given)
    log = 0.1 * math.log(factor)
    return (log * mscale + 1) / (log * of_all + 1) if mscale and of_all else log + 1
