"""Length extrapolation: every position method, trained on short rows and tested on long ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

from retnet.bench.picture import tokens_text
from retnet.bench.table import Table
from retnet.mixers.attention.config import RandomPositions, ReRoPE
from retnet.model import DecoderConfig, rival
from retnet.model.layouts import hwfa, hwfa2
from retnet.ops.rope_scaling import RoPEScaling, ScalingKind
from retnet.reproduce.cell import Result
from retnet.reproduce.experiment import Plan, Report, Setup
from retnet.reproduce.experiments.contexts import (
    Curve,
    context_measure,
    context_table,
    curve_of,
    doubling,
    draw_contexts,
    long_text,
    tested,
)
from retnet.reproduce.experiments.domains import gap_of, tuning_remarks
from retnet.reproduce.intervals import Claim
from retnet.reproduce.scales import Scale
from retnet.reproduce.sweep import Entrant, runs, sweep

ROPE = "RoPE"
RETNET = "RetNet"
RWKV = "RWKV"
TRAINED = "trained with the method"
AT_TEST = "changed at the test"
SINKS = 4
SEGMENT = 128
MORE_TEXT = 6
"""Times as many tokens to be tested on as in other experiments: few documents are so long."""

SCALINGS: dict[str, ScalingKind] = {
    "PI": "linear",
    "NTK": "ntk",
    "NTK mixed": "ntk_mixed",
    "dynamic NTK": "dynamic",
    "YaRN": "yarn",
}
"""Ways to slow rotations down at the test."""

SU = {
    "RoPE": ("49.41", "24.17", "23.16"),
    "HWFA": ("48.70", "80.84", "48.15"),
    "KeyNorm": ("49.60", "61.08", "47.69"),
    "RoPE, ReRoPE at the test": ("49.41", "77.90", "48.48"),
    "log n, ReRoPE at the test": ("49.40", "85.12", "49.07"),
    "RoPE, NTK mixed at the test": ("49.41", "53.09", "40.12"),
    "HWFA2, ReRoPE at the test": ("49.46", "84.43", "49.36"),
}
"""Accuracy in % at 512, at 4096 that repeats itself, at 4096; kexue.fm/archives/9603 and others."""


class Extrapolation:
    """See the module."""

    name = "extrapolation"
    title = "Length extrapolation of position methods"
    about = (
        "Every method learns from rows of the same length; then the same last tokens of long "
        "held-out documents of the same kind are predicted from more and more context, up to many "
        "times that length: where a model predicts well, what breaks it shows. "
        "Methods said to be at the test change how a trained model reads and none of its "
        "weights. Transformers share the learning rate that is best for RoPE."
    )
    reads_texts = True

    def sized(self, scale: Scale) -> Scale:
        """Whole documents of the domain that is learned, a few times as many."""
        tokens = MORE_TEXT * scale.amounts.test_tokens
        return replace(scale, amounts=replace(scale.amounts, held_out=True, test_tokens=tokens))

    def plan(self, setup: Setup, done: Mapping[str, Result]) -> Plan:
        """Each method; those at the test are variants of the model that they change."""
        scale = setup.scale
        assert setup.texts is not None
        length = scale.train.seq_len
        text = long_text(setup.texts.tests, scale.longest)
        contexts = doubling(length, scale.longest)
        measure = context_measure(text, contexts, min(SEGMENT, length // 2))
        return sweep(setup, _entrants(scale.model, length, scale.longest), (measure,), done)

    def report(self, results: Sequence[Result]) -> Report:
        """Perplexity by length of context."""
        found = runs(results)
        [measure] = tested(results)
        by_method: dict[str, Curve] = {}
        panels: dict[str, list[str]] = {TRAINED: [], AT_TEST: []}
        rates: dict[str, str] = {}
        for name, run in found.items():
            settings = next(iter(run.results.values())).settings
            for variant in ("", *settings["variants"]):
                method = f"{name}, {variant}" if variant else name
                panels[AT_TEST if variant else TRAINED].append(method)
                curve = curve_of(run, [measure], f"{variant}: " if variant else "")
                if curve:
                    by_method[method] = curve
                    rates[method] = run.rate_text
        length, longest = measure["contexts"][0], measure["contexts"][-1]
        caption = (
            f"Perplexity of the last {measure['segment']} tokens of long rows of the "
            f"{measure['name']} text, from as much context as the column says; trained on rows of "
            f"{length}. Mean over seeds ± its standard error. More context: whether the longest "
            "context improves on the shortest, is surely flat, or breaks (is worse than the best), "
            "by intervals over seeds."
        )
        shown = {title: methods for title, methods in panels.items() if methods}
        return Report(
            ours=[context_table("Perplexity by context", by_method, rates, caption)],
            papers=[_su()],
            claims=_claims(by_method, length, longest),
            remarks=tuning_remarks(found, {}, results),
            draw=lambda figure: draw_contexts(figure, by_method, (RETNET, ROPE), shown),
        )


def _claims(found: Mapping[str, Curve], length: int, longest: int) -> list[Claim]:
    """What is said of each method, as differences of losses by seed."""
    far, near = tokens_text(longest), tokens_text(length)
    nothing: Curve = {}
    rope = found.get(ROPE, nothing)
    claims = [
        Claim(
            says=f"worse at {far} than at {near}: {{}}",
            name=name,
            gap=gap_of(found.get(name, nothing).get(longest), found.get(name, nothing).get(length)),
        )
        for name in (ROPE, RETNET, RWKV)
    ]
    claims += [
        Claim(
            says=f"better than RoPE at {far}: {{}}",
            name=name,
            gap=gap_of(rope.get(longest), curve.get(longest)),
        )
        for name, curve in found.items()
        if name != ROPE
    ]
    return claims


@cache
def _entrants(base: DecoderConfig, length: int, longest: int) -> dict[str, Entrant]:
    """Methods by name: trained ones, each with what may be done with it at the test."""
    rope = rival(base, "attention")
    log_n = _attention(rope, log_n="always", train_len=length)
    rerope = {"ReRoPE at the test": {"rerope": ReRoPE(window=length // 2)}}
    at_test: dict[str, dict[str, Any]] = {
        "window at the test": {"window": length},
        "window and sinks at the test": {"window": length, "sinks": SINKS},
        "log n at the test": {"log_n": "beyond", "train_len": length},
        **rerope,
    }
    for name, kind in SCALINGS.items():
        scaling = RoPEScaling(kind=kind, factor=longest / length, original_len=length)
        at_test[f"{name} at the test"] = {"scaling": scaling}
    trained: dict[str, dict[str, Any]] = {
        "NoPE": {"position": "none"},
        "ALiBi": {"position": "alibi"},
        "xPos": {"position": "xpos"},
        "KERPLE": {"position": "kerple_log"},
        "Sandwich": {"position": "sandwich"},
        "window": {"window": max(length // 4, 2)},
        "KeyNorm": {"scores": "key_norm"},
        "random positions": {"random_positions": RandomPositions(kind="subset", length=longest)},
    }
    entrants = {
        RETNET: Entrant(config=base),
        ROPE: Entrant(config=rope, variants=_changed(rope, at_test)),
        RWKV: Entrant(config=rival(base, "rwkv")),
        "log n": Entrant(config=log_n, variants=_changed(log_n, rerope), tuned_as=ROPE),
        "HWFA": Entrant(config=hwfa(rope, length), tuned_as=ROPE),
    }
    if rope.num_layers > 2:
        config = hwfa2(rope, length)
        entrants["HWFA2"] = Entrant(config=config, variants=_changed(config, rerope), tuned_as=ROPE)
    for name, fields in trained.items():
        entrants[name] = Entrant(config=_attention(rope, **fields), tuned_as=ROPE)
    return entrants


def _changed(
    config: DecoderConfig, variants: Mapping[str, dict[str, Any]]
) -> dict[str, DecoderConfig]:
    return {name: _attention(config, **fields) for name, fields in variants.items()}


def _attention(config: DecoderConfig, **fields: Any) -> DecoderConfig:
    """The same attention with other fields, in all layers that see everything."""
    layers = tuple(
        layer
        if cast(Any, layer.mixer).window
        else replace(layer, mixer=replace(cast(Any, layer.mixer), **fields))
        for layer in config.layers
    )
    return replace(config, layers=layers)


def _su() -> Table:
    return Table(
        title="Accuracy of the next token in %",
        columns=("method", "512 tokens", "4096, second half repeats the first", "4096"),
        rows=[(name, *values) for name, values in SU.items()],
        caption=(
            "GAU of 100 million parameters trained on rows of 512 (Su 2023, "
            "kexue.fm/archives/9603, 9708, 9731, 9859); one run each."
        ),
    )
