"""A step of a whole model in one compiled call (README.md); running one needs Numba."""

from retnet.ops.program.program import (
    NO_NORM,
    CacheLeaves,
    Leaf,
    Norm,
    Program,
    Read,
    Turns,
    Vector,
    tiled,
    untiled,
)

__all__ = [
    "NO_NORM",
    "CacheLeaves",
    "Leaf",
    "Norm",
    "Program",
    "Read",
    "Turns",
    "Vector",
    "tiled",
    "untiled",
]
