"""Checkpoints of other programs: to ours and back, weights and decode states.

A format is a value (`Format`): functions that recognise, describe and name tensors. To add one,
write a file with it and add it to `FORMATS`.
"""

from retnet.hub.foreign.answers import Answer, Answers, MissingAnswers, Question
from retnet.hub.foreign.convert import Report, convert
from retnet.hub.foreign.convert_state import convert_state
from retnet.hub.foreign.formats import FORMATS, recognise

__all__ = [
    "FORMATS",
    "Answer",
    "Answers",
    "MissingAnswers",
    "Question",
    "Report",
    "convert",
    "convert_state",
    "recognise",
]
