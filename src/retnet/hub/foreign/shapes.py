"""The tensors that a decoder's file holds, without making the decoder."""

import torch

from retnet.hub.foreign.tensors import Entry
from retnet.model import Decoder, DecoderConfig


def decoder_entries(config: DecoderConfig, dtype: torch.dtype = torch.float32) -> dict[str, Entry]:
    """Names, shapes and dtypes of the parameters of a model in `dtype`; a tied head once.

    Parameters that stay float32 whatever the model's dtype are float32.
    """
    with torch.device("meta"):
        tensors = Decoder(config).to(dtype).state_dict()
    if config.tie_embeddings:
        del tensors["lm_head.weight"]
    return {name: Entry(tuple(x.shape), x.dtype) for name, x in tensors.items()}
