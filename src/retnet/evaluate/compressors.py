"""What general compressors need for a text: a floor that any language model has to pass.

They see the text alone and learn nothing beforehand. Their format's header counts, a few bytes.
"""

import gzip
import lzma


def gzip_bits(data: bytes) -> int:
    """Bits that gzip -9 needs for `data`.

    Example:
        >>> gzip_bits(b"a" * 1000) < 8 * 1000
        True
    """
    return 8 * len(gzip.compress(data, 9, mtime=0))


def xz_bits(data: bytes) -> int:
    """Bits that xz -9e needs for `data`; its window of 64 MiB sees most texts as a whole.

    Example:
        >>> xz_bits(b"a" * 1000) < 8 * 1000
        True
    """
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))
