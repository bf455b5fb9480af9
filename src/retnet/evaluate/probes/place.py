"""Position recognition, trained: say at each place of a text of equal tokens which place it is."""

import torch

from retnet.evaluate.probes.probe import Examples, Probe, check_length


def position(*, longest: int = 128, bos: bool = True) -> Probe:
    """The target at place t is t; only what the mixers do with positions can tell.

    `retnet.evaluate.position` answers whether the outputs differ at all; this, whether a model can
    learn to read the place from them.

    Args:
        longest: places that there are names for; vocab_size is this and at least 2.
        bos: whether the first token differs from the others.
    """

    def make(batch: int, length: int, generator: torch.Generator) -> Examples:  # noqa: ARG001
        check_length("position", length, 1)
        if length > longest:
            raise ValueError(
                f"length ({length}) must be at most {longest}, the places that this probe names; "
                "make one with position(longest=...)"
            )
        tokens = torch.ones(batch, length, dtype=torch.int64)
        tokens[:, :bos] = 0
        return Examples(tokens, torch.arange(length).repeat(batch, 1))

    return Probe(
        name="position",
        about="say which place it is, in a text of equal tokens",
        source="Su 2022, kexue.fm/archives/9105 (what a mixer can know of positions)",
        vocab_size=max(longest, 2),
        make=make,
        shortest=1,
        train_length=min(64, longest),
        test_lengths=(min(64, longest),),
        chance=1 / longest,
    )
