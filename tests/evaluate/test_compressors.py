import gzip
import lzma
import random

from retnet.evaluate import gzip_bits, xz_bits

TEXT = b"what a compressor finds twice it writes once; " * 40


def test_bits_are_those_of_a_file_that_unpacks_to_the_text() -> None:
    assert gzip.decompress(gzip.compress(TEXT, 9, mtime=0)) == TEXT
    assert gzip_bits(TEXT) == 8 * len(gzip.compress(TEXT, 9, mtime=0))
    assert xz_bits(TEXT) == 8 * len(lzma.compress(TEXT, preset=9 | lzma.PRESET_EXTREME))


def test_noise_does_not_shrink() -> None:
    noise = random.Random(0).randbytes(1000)
    assert gzip_bits(noise) > 8 * len(noise)
    assert xz_bits(noise) > 8 * len(noise)


def test_the_same_text_costs_the_same_tomorrow() -> None:
    """gzip writes the time into its header, unless told not to."""
    assert gzip_bits(TEXT) == gzip_bits(TEXT)
