"""The continuous batching of `transformers`: its Llama, a paged cache, many requests at once.

On a CPU it must be told how large its cache is and how many tokens a batch has: it would size both
by the memory of a GPU, and then does not end. Graphs and the second stream are CUDA's. Attention is
`sdpa` over pages, the fastest of those that a CPU has. The cache has twice the room that all
requests need: with less its scheduler lets the last ones wait until others have ended.
"""

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import torch

from retnet.bench.peers.llama_transformers import INSTALL, llama, name_of_llama, said
from retnet.bench.peers.missing import import_peer
from retnet.bench.peers.roles import Batcher, Written, num_parameters
from retnet.bench.sizes import ModelSize

PAGE = 256
BATCH = 2048  # tokens of a pass, prompts and decoding together


def batcher(size: ModelSize, dtype: torch.dtype) -> Batcher:
    """Answers requests as `generate_batch` does."""
    transformers = import_peer("transformers", "transformers", INSTALL)
    model = llama(size).eval().to(dtype)

    def write(prompts: Sequence[Sequence[int]], count: int) -> Written:
        longest = max(map(len, prompts)) + count
        settings: Any = transformers.ContinuousBatchingConfig(
            num_blocks=2 * len(prompts) * (-(-longest // PAGE) + 1),
            page_size=PAGE,
            max_batch_tokens=BATCH,
            use_cuda_graph=False,
            use_async_batching=False,
        )
        greedy = transformers.GenerationConfig(
            max_new_tokens=count, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        begin = perf_counter()
        found = model.generate_batch(
            [list(prompt) for prompt in prompts],
            generation_config=greedy,
            continuous_batching_config=settings,
            record_timestamps=True,
            warmup=False,
        )
        return Written(
            [list(one.generated_tokens) for one in found.values()],
            [[at - begin for at in one.timestamps] for one in found.values()],
        )

    return Batcher(
        f"{name_of_llama()}, continuous batching", said(dtype), num_parameters(model), write
    )
