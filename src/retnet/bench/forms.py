"""Disagreement between forms, measured: the recurrence in float64 is the judge."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from retnet.bench.cases import FORMS, QUICK_FORMS, FormsCase
from retnet.bench.record import Gate, GateFailed, Scalar
from retnet.bench.session import Session
from retnet.bench.timing import Spread
from retnet.hub import load_checkpoint
from retnet.model import Decoder, preset
from retnet.types import Form

BENCH = "forms"
ALL_FORMS: tuple[Form, ...] = ("recurrent", "parallel", "chunkwise")
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
METRICS = ("max_abs", "relative", "apart")
EXACT = 1e-10  # of the logits' standard deviation, in float64


class FormRow(NamedTuple):
    """How far one form's logits are from the truth, and from the other forms'.

    Attributes:
        dtype: of weights and activations, as `float32`.
        form: the form.
        max_abs: largest absolute difference from the float64 recurrence with the same weights.
        relative: the same, divided by the standard deviation of the exact logits.
        apart: largest absolute difference from another form in this dtype.
    """

    dtype: str
    form: Form
    max_abs: float
    relative: float
    apart: float


@torch.inference_mode()
def form_disagreement(
    model: Decoder, tokens: Int[Tensor, "B T"], dtypes: Sequence[torch.dtype] = DTYPES
) -> list[FormRow]:
    """Compare the forms' logits in each dtype; the model is copied, not changed.

    Weights are rounded to a dtype before the judge computes with them, so rows show errors of
    the computation, not of the rounding of weights.

    Args:
        model: any decoder; its dropout is off during the comparison.
        tokens: text to read; the recurrence takes them one by one, a few hundred are enough.
        dtypes: to compute in.

    Returns:
        A row for each dtype and form, in that order.
    """
    rows = []
    for dtype in dtypes:
        rounded = deepcopy(model).eval().to(dtype)
        exact = deepcopy(rounded).double()(tokens, form="recurrent")[0]
        logits = {
            form: exact  # the judge itself: no need to step through the text twice
            if (form, dtype) == ("recurrent", torch.float64)
            else rounded(tokens, form=form)[0].double()
            for form in ALL_FORMS
        }
        std = exact.std().item()
        for form in ALL_FORMS:
            got = logits[form]
            max_abs = (got - exact).abs().max().item()
            apart = max((got - other).abs().max().item() for other in logits.values())
            rows.append(
                FormRow(str(dtype).removeprefix("torch."), form, max_abs, max_abs / std, apart)
            )
    return rows


def bench_forms(session: Session, checkpoint: Path | None = None) -> None:
    """Record the table for a preset with small and large weights, or for a checkpoint."""
    case = QUICK_FORMS if session.quick else FORMS
    gains = case.gains if checkpoint is None else (1,)
    session.plan(len(gains))
    for gain in gains:
        what = f"{case.preset}, weights x{gain}" if checkpoint is None else checkpoint.name
        session.begin(f"forms of {what}")
        model = _preset(case, gain) if checkpoint is None else load_checkpoint(checkpoint)[0]
        name = case.preset if checkpoint is None else checkpoint.name
        try:
            _record(session, {"model": name, "gain": gain}, model, case.tokens)
        except GateFailed as error:
            session.fail(f"forms of {what}", error)
    session.end()


def _preset(case: FormsCase, gain: int) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(preset(case.preset, vocab_size=case.vocab_size))
    with torch.no_grad():
        for module in model.layers.modules():
            if isinstance(module, nn.Linear):
                module.weight *= gain
    return model


def _record(session: Session, fields: Mapping[str, Scalar], model: Decoder, T: int) -> None:
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, T), generator=random)
    rows = form_disagreement(model, tokens)
    worst = max(row.relative for row in rows if row.dtype == "float64")
    why = f"forms differ by {worst:.1e} of the logits' deviation in float64, over {EXACT:.0e}"
    gate = Gate(worst <= EXACT, why)
    gate.require()
    for row in rows:
        metrics = {name: Spread.of([getattr(row, name)]) for name in METRICS}
        case = {**fields, "T": T, "dtype": row.dtype, "form": row.form}
        session.recorder.add(BENCH, case, metrics, gate)
