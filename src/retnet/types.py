"""The glossary: the letters and names that every other room uses.

| name | meaning |
|---|---|
| B, T, C | batch rows, tokens, tokens of one chunk |
| D, H, V | model width, heads, vocabulary size |
| D_k, D_v | key and value width of one head |
| q k v o | queries, keys, values, outputs: (B, T, H, D_k or D_v) |
| state | what a branch carries from one call to the next; batch first in every leaf |
| S | retention's state matrix, (B, H, D_k, D_v), float32 or better |
| log_decay | natural logarithm of a head's decay per token, <= 0: (H,) |
| valid | (B, T) bool, False at padding |
| starts | (B, T) bool, True at the first token of a document |
| position | index of a token in its document, from 0 |
"""

from typing import Literal

Form = Literal["parallel", "recurrent", "chunkwise"]
"""How a recurrence is computed; every form gives the same numbers."""

FormChoice = Literal["auto", "parallel", "recurrent", "chunkwise"]
"""A form, or `auto`: recurrent for a single token, else chunkwise."""

Backend = Literal["torch", "triton"]
"""Who computes it."""

__all__ = ["Backend", "Form", "FormChoice"]
