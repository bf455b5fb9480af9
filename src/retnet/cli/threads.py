"""What must be said to PyTorch's threads before there is a PyTorch."""

import os

SPINS = "1000"


def short_spins() -> None:
    """Let threads sleep soon after a call: microseconds instead of milliseconds.

    A server reads prompts with PyTorch and writes texts with threads of its own, in turns: those
    who look for more work keep a core from those who have it. GCC's OpenMP reads its settings once,
    when PyTorch is imported; what the environment says already stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
