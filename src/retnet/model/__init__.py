"""Model: the one decoder, its config and presets, its state, and generation."""

from retnet.model.config import DecoderConfig, LayerConfig
from retnet.model.decoder import Decoder
from retnet.model.generation import Completion, Session, generate, stream
from retnet.model.layouts import hwfa, hwfa2
from retnet.model.presets import PRESETS, preset
from retnet.model.rivals import rival
from retnet.model.sampling import Sampling
from retnet.model.state import DecoderState, concat_rows, copy_state, select_rows, state_bytes
from retnet.model.steps import pack

__all__ = [
    "PRESETS",
    "Completion",
    "Decoder",
    "DecoderConfig",
    "DecoderState",
    "LayerConfig",
    "Sampling",
    "Session",
    "concat_rows",
    "copy_state",
    "generate",
    "hwfa",
    "hwfa2",
    "pack",
    "preset",
    "rival",
    "select_rows",
    "state_bytes",
    "stream",
]
