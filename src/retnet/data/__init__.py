"""Text to tokens to batches: corpora, tokenizers, and the order in which samples are seen."""

from retnet.data.batches import (
    Batch,
    carried_batch,
    eval_windows,
    share_rows,
    stream_segments,
    training_batch,
    window_starts,
    windows_per_epoch,
)
from retnet.data.config import DataConfig, TokenizerConfig
from retnet.data.corpus import Documents, find_files
from retnet.data.prepare import Corpus, prepare
from retnet.data.progress import Progress
from retnet.data.stream import TokenStream
from retnet.data.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "Corpus",
    "DataConfig",
    "Documents",
    "Progress",
    "TokenStream",
    "Tokenizer",
    "TokenizerConfig",
    "carried_batch",
    "eval_windows",
    "find_files",
    "prepare",
    "share_rows",
    "stream_segments",
    "training_batch",
    "window_starts",
    "windows_per_epoch",
]
