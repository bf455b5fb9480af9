import torch

from retnet.bench.forms import ALL_FORMS, form_disagreement
from retnet.mixers.channel import GLUConfig
from retnet.mixers.retention import RetentionConfig
from retnet.model import Decoder, DecoderConfig, LayerConfig


def tiny(score_norm: str = "scaled") -> Decoder:
    layer = LayerConfig(
        mixer=RetentionConfig(num_heads=2, score_norm=score_norm),  # pyright: ignore[reportArgumentType]
        channel=GLUConfig(width=16),
        repeat=2,
    )
    return Decoder(DecoderConfig(d_model=16, layers=(layer,), vocab_size=32))


def tokens() -> torch.Tensor:
    return torch.randint(32, (2, 40))


def test_every_dtype_and_form_has_a_row() -> None:
    rows = form_disagreement(tiny(), tokens())
    assert [(row.dtype, row.form) for row in rows] == [
        (dtype, form) for dtype in ("float64", "float32", "bfloat16") for form in ALL_FORMS
    ]


def test_errors_grow_with_the_rounding_of_the_dtype() -> None:
    rows = form_disagreement(tiny(), tokens())
    worst = {d: max(r.relative for r in rows if r.dtype == d) for d in ("float64", "float32")}
    rough = max(r.relative for r in rows if r.dtype == "bfloat16")
    assert worst["float64"] < 1e-12 < worst["float32"] < 1e-4 < rough < 0.5


def test_the_judge_agrees_with_itself() -> None:
    first = form_disagreement(tiny(), tokens(), [torch.float64])[0]
    assert (first.form, first.max_abs) == ("recurrent", 0.0)


def test_forms_that_disagree_are_seen() -> None:
    """torchscale's normaliser exists in its parallel form only, and eps lets it through."""
    model = tiny("torchscale")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 8
    rows = form_disagreement(model, tokens(), [torch.float64])
    by_form = {row.form: row for row in rows}
    assert by_form["chunkwise"].max_abs < 1e-9 < by_form["parallel"].max_abs
    assert by_form["chunkwise"].apart >= by_form["parallel"].max_abs - 1e-9


def test_the_model_is_left_as_it_was() -> None:
    model = tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    form_disagreement(model, tokens())
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())
