"""Keep freed memory in the process instead of asking the kernel for it again."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of freed tensors; does nothing elsewhere.

    By default glibc maps each large tensor anew and gives it back when freed, so every step of
    training faults in all its activations page by page: a quarter of a small model's step. The
    price is that the process keeps its peak. For the whole process, until it ends.

    Returns:
        Whether the C library took the settings.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
