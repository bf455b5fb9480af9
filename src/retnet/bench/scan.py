"""The diagonal recurrence alone: forward, and forward with backward, beside a loop in Python."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from retnet.bench.cases import QUICK_SCANS, SCANS, ScanCase
from retnet.bench.gates import CUT_TOKENS, Results, all_of, budgets, judge, judge_plain
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.timing import alternate, milliseconds, ratios
from retnet.ops import linear_recurrence
from retnet.train import keep_freed_memory
from retnet.types import Form

BENCH = "op/scan"
CHUNKWISE: Form = "chunkwise"
LOOP: Form = "recurrent"


class ScanInputs(NamedTuple):
    """What a case is measured on."""

    a: Tensor
    b: Tensor
    d_h: Tensor


def bench_scan(session: Session) -> None:
    """Measure every case."""
    keep_freed_memory()  # as in training
    cases = session.choose(SCANS, QUICK_SCANS)
    session.plan(len(cases))
    for name, case in cases.items():
        session.begin(f"scan {name}")
        try:
            _bench(case, session)
        except GateFailed as error:
            session.fail(f"scan {name}", error)
    session.end()


def _bench(case: ScanCase, session: Session) -> None:
    inputs = scan_inputs(case)
    forms = CHUNKWISE, *case.others
    gate = gate_scan(inputs, forms)
    gate.require()
    effort = session.effort._replace(budget_s=session.effort.budget_s / 4)
    for passes, call in (("fwd", _forward), ("fwdbwd", _both)):
        seconds = alternate({form: call(inputs, form) for form in forms}, effort)
        for form in forms:
            metrics = {f"{passes}_ms": milliseconds(seconds[form])}
            if form != CHUNKWISE:
                over = ratios(seconds[form], seconds[CHUNKWISE])
                metrics[f"{passes}_time_over_chunkwise"] = over
            session.recorder.add(BENCH, {**case.fields(), "form": form}, metrics, gate)


def scan_inputs(case: ScanCase) -> ScanInputs:
    """Draw a case's inputs, the same every time; factors forget within 10 to 1,000 tokens."""
    random = torch.Generator().manual_seed(0)
    tokens = case.B, case.T, case.N
    a = 0.9 + 0.099 * torch.rand(tokens if case.factors == "token" else case.N, generator=random)
    if case.torch_dtype.is_complex:
        a = torch.polar(a, 6.28 * torch.rand(a.shape, generator=random))
    b, d_h = (torch.randn(tokens, generator=random, dtype=case.torch_dtype) for _ in range(2))
    return ScanInputs(a, b, d_h)


def gate_scan(inputs: ScanInputs, forms: tuple[Form, ...]) -> Gate:
    """Judge h of all tokens, and the gradients over the first ones, by the loop in float64."""
    first = ScanInputs(
        inputs.a if inputs.a.ndim == 1 else inputs.a[:, :CUT_TOKENS],
        inputs.b[:, :CUT_TOKENS],
        inputs.d_h[:, :CUT_TOKENS],
    )
    verdicts = []
    for results, given in ((_outputs, inputs), (_gradients, first)):
        wide = torch.complex128 if given.b.is_complex() else torch.float64
        exact = results(ScanInputs(*(x.to(wide) for x in given)), LOOP)
        plain: Results = {LOOP: results(given, LOOP)}
        verdicts.append(judge_plain(plain, exact))
        budget = budgets(plain, exact)
        verdicts += [judge(results(given, form), exact, budget) for form in forms if form != LOOP]
    return all_of(verdicts)


def _outputs(inputs: ScanInputs, form: Form) -> dict[str, Tensor]:
    with torch.inference_mode():
        h, state = linear_recurrence(inputs.a, inputs.b, form=form)
    return {"h": _numbers(h), "state": _numbers(state)}


def _gradients(inputs: ScanInputs, form: Form) -> dict[str, Tensor]:
    d_a, d_b = _both(inputs, form)()
    return {"d_a": _numbers(d_a), "d_b": _numbers(d_b)}


def _forward(inputs: ScanInputs, form: Form) -> Callable[[], Tensor]:
    def call() -> Tensor:
        with torch.inference_mode():
            return linear_recurrence(inputs.a, inputs.b, form=form)[0]

    return call


def _both(inputs: ScanInputs, form: Form) -> Callable[[], tuple[Tensor, ...]]:
    leaves = [x.detach().clone().requires_grad_() for x in (inputs.a, inputs.b)]

    def call() -> tuple[Tensor, ...]:
        h, _ = linear_recurrence(*leaves, form=form)
        return torch.autograd.grad(h, leaves, inputs.d_h)

    return call


def _numbers(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x
