"""Convert a checkpoint: any format to any other, one tensor at a time, whole or not at all."""

import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.data import Tokenizer
from retnet.hub.checkpoint import CONFIG, WEIGHTS, write_description
from retnet.hub.files import write_atomic, write_json
from retnet.hub.foreign.answers import Answer, Answers
from retnet.hub.foreign.format import Format, Translation
from retnet.hub.foreign.formats import format_named, recognise
from retnet.hub.foreign.rules import Mapped, Rule
from retnet.hub.foreign.shapes import decoder_entries
from retnet.hub.foreign.sources import open_source
from retnet.hub.foreign.tensors import Cast, Entry, Source, Tensors
from retnet.hub.foreign.tokenizers import find_tokenizer
from retnet.model import DecoderConfig

Progress = Callable[[int, int], None]
"""Called with the bytes that are written, and all there are."""


class Report(NamedTuple):
    """What was converted.

    Attributes:
        version: of the source, in words.
        target: name of the format that was written.
        config: of the model, in our words.
        answers: options that were not in the weights, and those read off them.
        rules: which tensor became which, for the source's format (or the target's, if the source
            is ours).
        entries: what was written.
        tokenizer: what became of it, in words.
    """

    version: str
    target: str
    config: DecoderConfig
    answers: tuple[Answer, ...]
    rules: tuple[Rule, ...]
    entries: Mapping[str, Entry]
    tokenizer: str

    @property
    def num_parameters(self) -> int:
        """Numbers in what was written."""
        return sum(entry.num_bytes // entry.dtype.itemsize for entry in self.entries.values())

    def dtypes(self) -> str:
        """Names of the dtypes that were written."""
        names = {str(entry.dtype).removeprefix("torch.") for entry in self.entries.values()}
        return ", ".join(sorted(names))

    def mapping(self) -> list[tuple[str, str, int]]:
        """Their names and ours, a star for the layer, and how many tensors these stand for."""
        counts: Counter[tuple[str, str]] = Counter()
        for rule in self.rules:
            theirs, ours = (_any_layer(names) for names in (rule.theirs, rule.ours))
            counts[theirs, ours] += 1
        return [(theirs, ours, count) for (theirs, ours), count in counts.items()]


def _any_layer(names: tuple[str, ...]) -> str:
    return ", ".join(re.sub(r"\.\d+\.", ".*.", name, count=1) for name in names)


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "retnet",
    answers: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
    tokenizer: str = "",
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write a checkpoint folder in another format.

    Tensors are read, changed and written one after another. The folder appears when it is whole.

    Args:
        source: a folder or file of a known format, ours among them.
        target: the folder to write.
        to: the format's name, see `FORMATS`.
        answers: options that the weights do not say and no config tells, by the source's names.
        dtype: of the parameters; None keeps each tensor's. Parameters that need float32 are kept
            float32 in our format.
        tokenizer: where to find it: a tokenizer.json, its folder, or "bytes"; empty for the
            source's own, if it has one.
        force: replace the model in a folder that has one.
        progress: called as bytes are written.

    Returns:
        What was done, to be shown.

    Raises:
        ValueError: the source is not known, damaged or hostile, the target format cannot express
            it, options are missing (`MissingAnswers`), or the target exists.
    """
    # "." has no name, and a link stays where it is
    source, target, written = Path(source), Path(target).resolve(), format_named(to)
    _refuse_existing(source, target, force)
    opened = open_source(source)
    found, version = recognise(opened)
    said = Answers(answers or {}, opened.config, opened.origin)
    theirs = found.describe(opened, said)
    usual = found.tokenizers.get(theirs.decoder.vocab_size, "")
    kept, told = find_tokenizer(source, tokenizer, theirs.decoder.vocab_size, usual)
    ours = _import(opened, theirs, dtype if to == "retnet" else None)
    translation = written.express(theirs.decoder, said)
    said.refuse_unused()
    out = _export(ours, translation, written, dtype if to != "retnet" else None)
    staging = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        staging.mkdir(parents=True)
        with torch.no_grad():
            tensors = _read_all(out, progress or _silent)
            write_atomic(
                staging / written.file, lambda path: written.save(path, out.entries, tensors)
            )
        _describe_folder(staging, written, translation, out, kept)
        _move(staging, target)
    except OSError as error:
        raise ValueError(
            f"{target} cannot be written: {error}; make room, or give a folder that can be"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Report(
        version=version,
        target=to,
        config=theirs.decoder,
        answers=tuple(said.taken.values()),
        rules=translation.rules if found.name == "retnet" else theirs.rules,
        entries=out.entries,
        tokenizer=told,
    )


class _With:
    """Tensors, and some more that are at hand."""

    def __init__(self, tensors: Tensors, more: Mapping[str, Tensor]) -> None:
        self._tensors, self._more = tensors, more
        added = {name: Entry(tuple(x.shape), x.dtype) for name, x in more.items()}
        self.entries = {**tensors.entries, **added}

    def read(self, name: str) -> Tensor:
        return self._more[name] if name in self._more else self._tensors.read(name)


def _import(source: Source, theirs: Translation, dtype: torch.dtype | None) -> Tensors:
    """Tensors of ours, which are those of the decoder and no others."""
    known = {name for rule in theirs.rules for name in rule.theirs} | theirs.derived.keys()
    extra = [name for name in source.entries if name not in known]
    if extra:
        raise ValueError(
            f"{source.path} has {len(extra)} tensors that its format does not know: "
            f"{', '.join(extra[:5])}{', ...' if len(extra) > 5 else ''}; they would be lost, and "
            "the model would compute something else"
        )
    ours = Mapped(source, theirs.rules, "ours")
    want = decoder_entries(theirs.decoder, torch.bfloat16)
    for name, entry in want.items():
        if name not in ours.entries or ours.entries[name].shape != entry.shape:
            have = ours.entries[name].shape if name in ours.entries else "missing"
            raise ValueError(
                f"{source.path}: {name} is {have} and should be {entry.shape}; the config does "
                "not belong to these weights, or an answer is wrong"
            )
    assert want.keys() == ours.entries.keys()
    dtypes = {}
    for name, entry in ours.entries.items():
        chosen = dtype or entry.dtype
        needed = want[name].dtype
        dtypes[name] = torch.promote_types(chosen, needed) if needed == torch.float32 else chosen
    return Cast(ours, dtypes)


def _export(
    ours: Tensors, translation: Translation, written: Format, dtype: torch.dtype | None
) -> Tensors:
    mapped = Mapped(ours, translation.rules, "theirs")
    dtypes = {
        name: written.dtype_of(name, entry._replace(dtype=dtype or entry.dtype))
        for name, entry in mapped.entries.items()
    }
    return _With(Cast(mapped, dtypes), translation.derived)


def _read_all(tensors: Tensors, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    total, done = sum(entry.num_bytes for entry in tensors.entries.values()), 0
    for name, entry in tensors.entries.items():
        yield name, tensors.read(name)
        done += entry.num_bytes
        progress(done, total)


def _describe_folder(
    folder: Path,
    written: Format,
    translation: Translation,
    out: Tensors,
    tokenizer: Tokenizer | None,
) -> None:
    """Write what stands beside the weights."""
    if written.name == "retnet":
        dtype = out.entries["embed_tokens.weight"].dtype
        write_description(folder, translation.decoder, dtype, tokenizer)
        return
    if translation.config:
        write_json(folder / CONFIG, {**translation.config, **_token_ids(tokenizer)})
    if tokenizer is not None:
        tokenizer.save(folder)


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, int | None]:
    """What transformers would otherwise take from its class, and stop texts there."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None}
    return {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.end_ids[0]}


def _refuse_existing(source: Path, target: Path, force: bool) -> None:
    if target == source.resolve():
        raise ValueError(f"source and target are both {target}; give another folder to write")
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"{target} is a file; give a folder to write")
    if any(target.iterdir()) and not force:
        raise ValueError(f"{target} is not empty; give another folder, or --force to replace it")


def _move(staging: Path, target: Path) -> None:
    """Put the new files in place: a new folder at once, files of an old one each at once.

    An old one stays the folder that it is, even if empty: somebody may be in it.
    """
    if not target.exists():
        staging.rename(target)
        return
    for name in _MODEL_FILES:
        if name == CONFIG or not (staging / name).exists():  # no config beside other weights
            (target / name).unlink(missing_ok=True)
    for file in sorted(staging.iterdir(), key=lambda file: file.name == CONFIG):
        file.replace(target / file.name)  # the config last: it makes the folder a model


_MODEL_FILES = (
    CONFIG,
    WEIGHTS,
    f"{WEIGHTS}.index.json",
    "model.pth",
    "model.bin",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
"""What a folder has of a model: the old ones go when another model comes."""


def _silent(done: int, total: int) -> None:
    del done, total


__all__ = ["Report", "convert", "recognise"]
