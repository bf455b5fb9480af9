import pytest
import torch

from retnet.evaluate import format_bytes, key_value_cache_bytes, state_bytes_per_text
from retnet.model import Decoder, preset, state_bytes


def test_state_is_as_large_after_many_tokens_as_after_one() -> None:
    model = Decoder(preset("small-1m", vocab_size=32)).eval()
    with torch.inference_mode():
        _, state = model(torch.zeros(1, 70, dtype=torch.int64))
    assert state_bytes_per_text(model) == state_bytes(state)


def test_state_is_the_size_that_the_paper_says() -> None:
    """6 layers, 2 heads, D_k 64, D_v 128, float32; and the position, int64."""
    model = Decoder(preset("small-1m", vocab_size=32))
    assert state_bytes_per_text(model) == 4 * 2 * 64 * 128 * 4 + 8


def test_cache_holds_a_key_and_a_value_of_every_token_and_layer() -> None:
    keys, values = torch.zeros(2, 3, 100, 64, dtype=torch.bfloat16)
    expected = keys.nbytes + values.nbytes
    assert key_value_cache_bytes(num_layers=3, d_model=64, num_tokens=100) == expected


def test_cache_of_float32_is_twice_as_large() -> None:
    sizes = {"num_layers": 2, "d_model": 8, "num_tokens": 5}
    assert key_value_cache_bytes(**sizes, bytes_per_value=4) == 2 * key_value_cache_bytes(**sizes)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999_600, "1 MB"),
        (1572864, "1.57 MB"),
        (3_072_000_000, "3.07 GB"),
        (5 * 10**15, "5e+03 TB"),
    ],
)
def test_bytes_are_written_with_three_digits(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
