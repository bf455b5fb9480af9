import pytest
import torch
from torch import Tensor

from retnet.bench import gates
from retnet.bench.cases import QUICK_OPS, OpCase
from retnet.bench.gates import (
    budgets,
    gate_decoder,
    gate_decoding,
    gate_finite,
    gate_op,
    gate_rows,
    judge,
    op_inputs,
)
from retnet.bench.record import GateFailed
from retnet.bench.sizes import TINY
from retnet.model import Decoder, DecoderState
from retnet.model.decoding import prefill
from retnet.ops import retention
from retnet.ops.packed_linear import Weights


@pytest.mark.parametrize("name", QUICK_OPS)
def test_our_forms_pass_the_gate(name: str) -> None:
    gate_op(op_inputs(QUICK_OPS[name])).require()


@pytest.mark.parametrize("T", [1, 33])
def test_the_gate_takes_any_length(T: int) -> None:
    gate_op(op_inputs(OpCase(T=T, dtype="float32", D_k=4, D_v=6))).require()


def test_inputs_of_a_case_are_the_same_every_time() -> None:
    case = QUICK_OPS["quick-bfloat16"]
    torch.manual_seed(1)
    first = op_inputs(case)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, op_inputs(case), strict=True))


@pytest.mark.parametrize("wrong", ["chunkwise", "parallel"])
@pytest.mark.parametrize("tensor", ["o", "S"])
def test_a_slightly_wrong_form_fails_the_gate(
    monkeypatch: pytest.MonkeyPatch, wrong: str, tensor: str
) -> None:
    def spoiled(*args: Tensor, form: str) -> tuple[Tensor, Tensor]:
        o, S = retention(*args, form=form)  # pyright: ignore[reportArgumentType]
        factor = 1 + 1e-3 * (form == wrong)
        return (o * factor, S) if tensor == "o" else (o, S * factor)

    monkeypatch.setattr(gates, "retention", spoiled)
    gate = gate_op(op_inputs(QUICK_OPS["quick-float32"]))
    with pytest.raises(GateFailed, match=rf"{tensor} errs by .* over its budget"):
        gate.require()


def test_a_wrong_gradient_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(q: Tensor, *args: Tensor, form: str) -> tuple[Tensor, Tensor]:
        if form == "chunkwise":
            q = q.detach() + 0.999 * (q - q.detach())  # right value, wrong slope
        return retention(q, *args, form=form)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(gates, "retention", spoiled)
    gate = gate_op(op_inputs(QUICK_OPS["quick-float32"]))
    assert not gate.passed
    assert "d_q errs by" in gate.why


def test_nan_fails_every_gate() -> None:
    exact = {"o": torch.ones(2, dtype=torch.float64)}
    nan = {"o": torch.tensor([1.0, torch.nan])}
    assert not judge(nan, exact, {"o": 1e9}).passed
    assert not gate_finite(nan).passed
    assert gate_finite({"o": torch.ones(2)}).passed


def test_the_budget_is_twice_the_plain_forms_larger_error() -> None:
    exact = {"o": torch.zeros(2, dtype=torch.float64)}
    plain: gates.Results = {
        "parallel": {"o": torch.tensor([0.0, 0.25])},
        "recurrent": {"o": torch.tensor([0.5, 0.0])},
    }
    assert budgets(plain, exact)["o"] == pytest.approx(1.0)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_our_decoder_passes_the_gate(precision: gates.Precision) -> None:
    gate_decoder(Decoder(TINY.config()), precision).require()


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_our_decoding_passes_the_gate(weights: Weights) -> None:
    gate_decoding(Decoder(TINY.config()).eval(), weights).require()


def test_decoding_that_forgets_its_prompt_fails_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: Decoder, prompt: Tensor) -> tuple[Tensor, DecoderState]:
        return prefill(model, prompt)[0], prefill(model, prompt[:, -1:])[1]

    monkeypatch.setattr(gates, "prefill", forgetful)
    gate = gate_decoding(Decoder(TINY.config()).eval(), "float32")
    assert not gate.passed
    assert "logits errs by" in gate.why


def test_rows_of_one_text_that_differ_fail_the_gate() -> None:
    logits = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
    assert gate_rows("a", logits).passed
    logits[1, 0] = 2
    assert gate_rows("a", logits).why == "a: equal rows differ by 1.0e+00"
    assert not gate_rows("a", logits).passed
