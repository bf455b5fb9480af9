"""The continuous batching of `transformers` is what it is taken for: its own Llama's tokens."""

import pytest
import torch

from retnet.bench.peers import continuous_batching
from retnet.bench.peers.llama_transformers import INSTALL, llama
from retnet.bench.sizes import TINY

pytest.importorskip("transformers", reason=INSTALL)


@pytest.mark.filterwarnings("ignore")  # its own
def test_it_writes_what_its_llama_writes() -> None:
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(TINY.vocab_size, (2, 12), generator=random).tolist()
    written = continuous_batching.batcher(TINY, torch.float32).write(prompts, 4)
    model = llama(TINY).eval()
    for prompt, tokens, at_s in zip(prompts, written.tokens, written.at_s, strict=True):
        text = list(prompt)
        for _ in range(4):
            with torch.inference_mode():
                text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        assert tokens == text[12:]
        assert sorted(at_s) == at_s
