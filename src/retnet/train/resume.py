"""May a run go on with this config and this text? Only if it stays the same run."""

import hashlib
from typing import Any

import numpy as np

from retnet.data import Corpus
from retnet.hub import to_dict
from retnet.train.config import RunConfig

FREE = {
    "run.dir",
    # The text decides, wherever it lies: see `corpus_fingerprint`.
    "data.train",
    "data.valid",
    "data.streaming",
    "data.tokenizer.path",
    "tune.base",
    "train.steps",
    "train.accumulate",
    "train.gradient_checkpointing",
    "train.shard",
    "train.sequence_ranks",
    "train.log_every",
    "train.log_to",
    "train.eval_every",
    "train.eval_tokens",
    "train.save_every",
    "train.keep",
    "train.sample_every",
    "train.sample_prompt",
    "train.sample_tokens",
}
"""Settings that may change on the way. More steps lengthen the schedule, too."""

UNSET = "not set"


def refuse_changes(old: RunConfig, new: RunConfig) -> None:
    """Check that a run may go on with a new config.

    Raises:
        ValueError: a setting has changed that decides what the run computes.
    """
    before, after = flat(to_dict(old)), flat(to_dict(new))
    if new.model.vocab_size == 0:
        after["model.vocab_size"] = before["model.vocab_size"]
    for key in {**before, **after}:
        was, now = before.get(key, UNSET), after.get(key, UNSET)
        if was != now and key not in FREE:
            raise ValueError(
                f"{key} ({_shown(now)}) must stay {_shown(was)}, with which this run began; set it "
                "back, or start a new run with another run.dir"
            )


def _shown(value: Any) -> Any:
    """What a message shows: an empty text would leave a hole in it."""
    return '""' if value == "" else value


def corpus_fingerprint(corpus: Corpus) -> str:
    """Sixteen hexadecimal digits that tell one tokenised text from another.

    Of a long text only a part is read: 256 pieces, and where all documents start.
    """
    digest = hashlib.blake2b(corpus.tokenizer.fingerprint.encode(), digest_size=8)
    for stream in (corpus.train, corpus.valid):
        digest.update(f"{stream.num_tokens} {stream.num_bytes}".encode())
        digest.update(stream.document_starts.astype("<i8").tobytes())
        last = max(stream.num_tokens - 4096, 0)
        for begin in np.linspace(0, last, 256, dtype=np.int64).tolist():
            digest.update(stream.tokens[begin : begin + 4096].astype("<u4").tobytes())
    return digest.hexdigest()


def refuse_other_text(old: RunConfig, new: RunConfig, was: str, now: str) -> None:
    """Check that the text is the one with which a run began.

    Args:
        old: config of the run so far.
        new: config to go on with.
        was: fingerprint of the text so far.
        now: of the text that `new` names.

    Raises:
        ValueError: they differ.
    """
    if was == now:
        return
    for key, before, after in (
        ("data.train", old.data.train, new.data.train),
        ("data.valid", old.data.valid, new.data.valid),
        ("data.tokenizer.path", old.data.tokenizer.path, new.data.tokenizer.path),
    ):
        if before != after:
            raise ValueError(
                f"{key} ({after}) must stay {before}, with which this run began, or name the same "
                "content; set it back, or start a new run with another run.dir"
            )
    raise ValueError(
        f"data.train ({new.data.train}) and data.valid ({new.data.valid}) must hold the text with "
        "which this run began, and the files have changed since; bring them back, or start a new "
        "run with another run.dir"
    )


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested tables and lists of tables as dotted names."""
    if isinstance(value, dict):
        items = [(f"{name}.{key}" if name else key, item) for key, item in value.items()]
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        items = [(f"{name}[{i}]", item) for i, item in enumerate(value)]
    else:
        return {name: value}
    return {k: v for key, item in items for k, v in flat(item, key).items()}
