"""Hub: checkpoint folders in Hugging Face layout, and the config files beside them."""

from retnet.hub.checkpoint import load, load_checkpoint, save_checkpoint, save_weights, write_atomic
from retnet.hub.structure import dump_toml, from_dict, load_toml, to_dict

__all__ = [
    "dump_toml",
    "from_dict",
    "load",
    "load_checkpoint",
    "load_toml",
    "save_checkpoint",
    "save_weights",
    "to_dict",
    "write_atomic",
]
