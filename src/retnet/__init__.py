"""Constant-memory language models: RetNet and its rivals in one decoder.

The names below are loaded when first used, so that `import retnet` and `retnet --help` answer
before torch is imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retnet.hub import load
    from retnet.mixers import CHANNEL_MIXERS, MIXERS
    from retnet.model import Decoder, DecoderConfig

    __version__: str

__all__ = ["CHANNEL_MIXERS", "MIXERS", "Decoder", "DecoderConfig", "__version__", "load"]

_ROOM_OF = {
    "CHANNEL_MIXERS": "retnet.mixers",
    "MIXERS": "retnet.mixers",
    "Decoder": "retnet.model",
    "DecoderConfig": "retnet.model",
    "load": "retnet.hub",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value = import_module("importlib.metadata").version("retnet")
    elif name in _ROOM_OF:
        value = getattr(import_module(_ROOM_OF[name]), name)
    else:
        raise AttributeError(f"module 'retnet' has no attribute {name!r}; it has {__all__}")
    globals()[name] = value  # the next look-up does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
