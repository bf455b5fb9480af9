"""What several formats do alike: count layers, see whether a head is tied, refuse by name."""

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import torch

from retnet.hub.foreign.answers import Answers, Question
from retnet.hub.foreign.rules import Rule, Tied, one
from retnet.hub.foreign.tensors import Source
from retnet.model import DecoderConfig


def num_layers(names: Iterable[str], prefix: str) -> int:
    """How many layers there are, by the numbers that follow `prefix` in names.

    Raises:
        ValueError: a number between is missing.
    """
    pattern = re.compile(re.escape(prefix) + r"(\d{1,9})\.")
    found = {int(match[1]) for name in names if (match := pattern.match(name))}
    for index in range(len(found)):
        if index not in found:
            raise ValueError(
                f"tensors of {prefix}{index} are missing, and those of {prefix}{max(found)} are "
                "there; the file is incomplete, or one of several"
            )
    return len(found)


def matrix(source: Source, name: str) -> tuple[int, int]:
    """Rows and columns of a tensor.

    Raises:
        ValueError: it is missing, or no matrix.
    """
    if name not in source.entries:
        raise ValueError(f"{name} is missing; the file is incomplete, or one of several")
    shape = source.entries[name].shape
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"{name} has the shape {shape}, and a matrix is wanted; fetch it again")
    return shape[0], shape[1]


def sizes_agree(answers: Answers, **found: int) -> None:
    """Note sizes that were read off the weights, by the names that the config has for them.

    Raises:
        ValueError: the config says otherwise, as where layers are missing from a file.
    """
    for name, size in found.items():
        answers.take(name, size)


def is_tied(source: Source, answers: Answers, option: str, embedding: str, head: str) -> bool:
    """Whether embedding and head are one matrix: by the config, else by comparing them.

    Args:
        source: the checkpoint.
        answers: what the config says.
        option: the format's name for it.
        embedding: name of that tensor.
        head: name of the other.

    Raises:
        ValueError: the config says that they are two, and there is one.
    """
    if head not in source.entries:
        return answers.take(option, True, f"there is no {head}")
    said = answers.read(Question(option, bool, "true or false", default=None))[option]
    if said is None:
        same_shape = source.entries.get(embedding) == source.entries[head]
        said = same_shape and torch.equal(source.read(embedding), source.read(head))
        answers.take(option, said)
    return said


def ends(config: DecoderConfig, embedding: str, head: str, head_stored: bool) -> tuple[Rule, ...]:
    """Rules for the embedding and the head, which may be one matrix.

    Args:
        config: of the decoder.
        embedding: their name.
        head: likewise.
        head_stored: whether the format stores a tied head beside the embedding.
    """
    if not config.tie_embeddings:
        return one("embed_tokens.weight", embedding), one("lm_head.weight", head)
    if head_stored:
        return (Rule(("embed_tokens.weight",), (embedding, head), Tied()),)
    return (one("embed_tokens.weight", embedding),)


def uniform_branches(config: DecoderConfig, format_name: str) -> tuple[Any, Any]:
    """The token mixer and the channel mixer that all layers have.

    Raises:
        ValueError: layers differ, or one lacks either.
    """
    kinds = set(config.branches)
    refuse(
        format_name,
        (len(kinds) > 1, "layers that differ from one another"),
        (any(len(branches) != 2 for branches in kinds), "a layer without one of the two mixers"),
    )
    [(mixer, channel)] = kinds
    return mixer, channel


def differences(config: Any, expressible: Any, *ignored: str) -> list[tuple[bool, str]]:
    """Fields in which a config differs from another of its class, for `refuse`.

    Args:
        config: the model's, or a part of it.
        expressible: the nearest that the format can say.
        ignored: fields that do not change what is computed.
    """
    names = [field.name for field in fields(config) if field.name not in ignored]
    pairs = [(name, getattr(config, name), getattr(expressible, name)) for name in names]
    return [(have != can, f"{name} = {have!r}") for name, have, can in pairs]


def refuse(format_name: str, *cannot: tuple[bool, str]) -> None:
    """Say what a format cannot express, if anything.

    Args:
        format_name: its name.
        cannot: whether the model has a feature, and the feature.

    Raises:
        ValueError: the model has some.
    """
    found = [what for has, what in cannot if has]
    if found:
        raise ValueError(
            f"{format_name} cannot express {'; '.join(found)}; choose another format "
            "(retnet convert --list), or keep the folder as it is"
        )
