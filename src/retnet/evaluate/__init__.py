"""Evaluate: scores of a checkpoint on text, and what they are to be compared with."""

from retnet.evaluate.compressors import gzip_bits, xz_bits
from retnet.evaluate.memory import format_bytes, key_value_cache_bytes, state_bytes_per_text
from retnet.evaluate.ngram import NGram
from retnet.evaluate.text import TextScore, count_words, read_files, score_files, score_stream

__all__ = [
    "NGram",
    "TextScore",
    "count_words",
    "format_bytes",
    "gzip_bits",
    "key_value_cache_bytes",
    "read_files",
    "score_files",
    "score_stream",
    "state_bytes_per_text",
    "xz_bits",
]
