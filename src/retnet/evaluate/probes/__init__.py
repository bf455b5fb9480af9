"""Probes: small tasks made at will, each of which asks one thing of a model's memory."""

from retnet.evaluate.probes.automata import (
    cycle_navigation,
    even_pairs,
    modular_arithmetic,
    parity,
)
from retnet.evaluate.probes.listops import listops
from retnet.evaluate.probes.place import position
from retnet.evaluate.probes.probe import (
    Examples,
    Probe,
    ProbeScore,
    answers_of,
    score_answers,
    score_probe,
)
from retnet.evaluate.probes.recall import MQAR_POINTS, mqar, needle, one_question
from retnet.evaluate.probes.strings import copying, repeated, reverse, sort
from retnet.ops.cross_entropy import IGNORED

PROBES = {
    probe.name: probe
    for probe in (
        mqar(),
        mqar(filler=True),
        mqar(vocab_size=64),
        one_question(first=False),
        one_question(first=True),
        needle(),
        copying(),
        reverse(),
        sort(),
        repeated(),
        position(),
        listops(),
        even_pairs(),
        parity(),
        cycle_navigation(),
        modular_arithmetic(),
    )
}
"""The usual ones, by name; the functions make others."""

__all__ = [
    "IGNORED",
    "MQAR_POINTS",
    "PROBES",
    "Examples",
    "Probe",
    "ProbeScore",
    "answers_of",
    "copying",
    "cycle_navigation",
    "even_pairs",
    "listops",
    "modular_arithmetic",
    "mqar",
    "needle",
    "one_question",
    "parity",
    "position",
    "repeated",
    "reverse",
    "score_answers",
    "score_probe",
    "sort",
]
