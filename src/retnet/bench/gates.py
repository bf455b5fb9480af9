"""Gates: what must be right before a case is measured.

The judge is the recurrence in float64. The chunkwise form may err at most twice what the plain
forms err in the same dtype: `parallel` and `recurrent` are plain, one formula each, and the
larger of their errors is the budget. They themselves must be within a few roundings.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.bench.cases import OpCase, Precision
from retnet.bench.record import Gate
from retnet.mixers.retention import log_decays
from retnet.model import Decoder, Sampling
from retnet.model.decoding import Decoding, prefill
from retnet.model.steps import Kernels, pack
from retnet.ops import retention
from retnet.ops.packed_linear import Weights
from retnet.types import Form

PLAIN: tuple[Form, ...] = ("parallel", "recurrent")
FACTOR = 2.0
ROUNDINGS = 64  # of float32: sums of hundreds of terms, through several layers
TENTH = 0.1  # of the largest value: what that many roundings of bfloat16 would far exceed
PLAIN_TOKENS = 2048  # the parallel form of more takes gigabytes, and errors do not grow after it
CUT_TOKENS = 320  # a chunk, at most 256, and a quarter: the float64 backward keeps an S for each
PROMPT_TOKENS, ANSWER_TOKENS = 70, 50
SIZE_SLACK = 0.01

Named = Mapping[str, Tensor]
Results = Mapping[Form, Named]


class OpInputs(NamedTuple):
    """What a case is measured on; q and k have the size that a mixer gives them."""

    q: Float[Tensor, "B T H D_k"]
    k: Float[Tensor, "B T H D_k"]
    v: Float[Tensor, "B T H D_v"]
    d_o: Float[Tensor, "B T H D_v"]
    log_decay: Float[Tensor, " H"]


def op_inputs(case: OpCase) -> OpInputs:
    """Draw a case's inputs, the same every time; decays are those of the official code."""
    random = torch.Generator().manual_seed(0)

    def draw(width: int, size: float = 1.0) -> Tensor:
        shape = (case.B, case.T, case.H, width)
        return (size * torch.randn(shape, generator=random)).to(case.torch_dtype)

    return OpInputs(
        draw(case.D_k),
        draw(case.D_k, case.D_k**-0.5),
        draw(case.D_v),
        draw(case.D_v),
        log_decays("pow2", case.H),
    )


def gate_op(inputs: OpInputs) -> Gate:
    """Judge outputs and final state over all tokens, and gradients over the first ones."""
    T = inputs.q.shape[1]
    start, cut = min(T, PLAIN_TOKENS), min(T, CUT_TOKENS)
    exact = _outputs(inputs, "recurrent", T, exact=True)
    start_exact = exact if start == T else _outputs(inputs, "recurrent", start, exact=True)
    plain: Results = {form: _outputs(inputs, form, start) for form in PLAIN}
    verdicts = [
        judge_plain(plain, start_exact),
        judge(_outputs(inputs, "chunkwise", T), exact, budgets(plain, start_exact)),
    ]
    exact = _gradients(inputs, "recurrent", cut, exact=True)
    plain = {form: _gradients(inputs, form, cut) for form in PLAIN}
    verdicts += [
        judge_plain(plain, exact),
        judge(_gradients(inputs, "chunkwise", cut), exact, budgets(plain, exact)),
    ]
    return all_of(verdicts)


def gate_decoder(model: Decoder, precision: Precision) -> Gate:
    """Judge every form's logits on a few hundred random tokens; bfloat16 is autocast."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, CUT_TOKENS), generator=random)
    with torch.inference_mode():
        exact = {"logits": deepcopy(model).double()(tokens, form="recurrent")[0]}
        plain: Results = {form: _logits(model, tokens, form, precision) for form in PLAIN}
        got = _logits(model, tokens, "chunkwise", precision)
    return all_of([judge_plain(plain, exact), judge(got, exact, budgets(plain, exact))])


def gate_decoding(model: Decoder, weights: Weights, kernels: Kernels = "auto") -> Gate:
    """Judge the logits of tokens decoded one by one after a prompt, with packed weights.

    Weights of 8 bits are other weights: their logits may err by a tenth of the largest.
    """
    packed = pack(model, weights, kernels)
    random = torch.Generator().manual_seed(0)
    prompt = torch.randint(model.config.vocab_size, (1, PROMPT_TOKENS), generator=random)
    decoding = Decoding(packed, *prefill(packed, prompt), Sampling(temperature=0.0))
    answer = [(next(decoding), decoding.logits) for _ in range(ANSWER_TOKENS)]
    got = {"logits": torch.stack([logits for _, logits in answer], 1)}
    text = torch.cat([prompt, torch.stack([token for token, _ in answer], 1)], 1)[:, :-1]
    given = slice(PROMPT_TOKENS - 1, None)
    plainly = deepcopy(model).to(torch.float32 if weights == "float32" else torch.bfloat16)
    with torch.inference_mode():
        plain: Results = {form: {"logits": plainly(text, form=form)[0][:, given]} for form in PLAIN}
        exact = {"logits": plainly.double()(text, form="recurrent")[0][:, given]}
    allowed = budgets(plain, exact)
    if weights == "int8":
        allowed = {name: TENTH * truth.abs().max().item() for name, truth in exact.items()}
    return all_of([judge_plain(plain, exact), judge(got, exact, allowed)])


def gate_rows(who: str, logits: Tensor) -> Gate:
    """Judge rows that go on from one text: they differ by rounding at most."""
    apart = (logits - logits[:1]).abs().max().item()
    return Gate(
        apart <= TENTH * logits.abs().max().item(), f"{who}: equal rows differ by {apart:.1e}"
    )


def gate_finite(tensors: Named) -> Gate:
    """Judge a peer, whose numerics are its own: finite values."""
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    return Gate(not bad, f"not finite: {', '.join(bad)}" if bad else "all finite")


def gate_size(ours: int, sizes: Mapping[str, int]) -> Gate:
    """Judge whether models may be compared: numbers of parameters within 1 % of ours."""
    off = {who: size for who, size in sizes.items() if abs(size - ours) > SIZE_SLACK * ours}
    return Gate(not off, f"parameters differ by more than 1 % from our {ours:,}: {off}")


def budgets(plain: Results, exact: Named) -> dict[str, float]:
    """The largest error that another form may have in each tensor."""
    return {
        name: FACTOR * max(_error(tensors[name], truth) for tensors in plain.values()) + 1e-12
        for name, truth in exact.items()
    }


def judge_plain(plain: Results, exact: Named) -> Gate:
    """Compare the plain forms with the exact values, or their errors would excuse anything.

    What rounds is the coarsest dtype: S is float32, but made of products of rounded keys.
    """
    dtypes = {tensor.dtype for tensors in plain.values() for tensor in tensors.values()}
    share = min(ROUNDINGS * max(torch.finfo(dtype).eps for dtype in dtypes), TENTH)
    budget = {name: share * truth.abs().max().item() for name, truth in exact.items()}
    return all_of([judge(tensors, exact, budget) for tensors in plain.values()])


def judge(got: Named, exact: Named, budget: Mapping[str, float]) -> Gate:
    """Compare every tensor with the exact one; NaN fails."""
    for name, truth in exact.items():
        error = _error(got[name], truth)
        if not error <= budget[name]:
            return Gate(False, f"{name} errs by {error:.2e}, over its budget {budget[name]:.2e}")
    return Gate(True, f"{', '.join(exact)} within budget")


def all_of(gates: Sequence[Gate]) -> Gate:
    """The first that failed, or the last."""
    return next((gate for gate in gates if not gate.passed), gates[-1])


def autocast(precision: Precision) -> AbstractContextManager[object]:
    """Autocast on the CPU, on for bfloat16 only."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")


def _error(got: Tensor, exact: Tensor) -> float:
    return (got.double() - exact).abs().max().item()


def _take(inputs: OpInputs, T: int, exact: bool) -> OpInputs:
    q, k, v, d_o = (x[:, :T].double() if exact else x[:, :T] for x in inputs[:4])
    return OpInputs(q, k, v, d_o, inputs.log_decay)


def _outputs(inputs: OpInputs, form: Form, T: int, *, exact: bool = False) -> Named:
    q, k, v, _, log_decay = _take(inputs, T, exact)
    with torch.inference_mode():
        o, S = retention(q, k, v, log_decay, form=form)
    return {"o": o, "S": S}


def _gradients(inputs: OpInputs, form: Form, T: int, *, exact: bool = False) -> Named:
    q, k, v, d_o, log_decay = _take(inputs, T, exact)
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    o, _ = retention(q, k, v, log_decay, form=form)
    return dict(zip(("d_q", "d_k", "d_v"), torch.autograd.grad(o, (q, k, v), d_o), strict=True))


def _logits(model: Decoder, tokens: Int[Tensor, "B T"], form: Form, precision: Precision) -> Named:
    with autocast(precision):
        return {"logits": model(tokens, form=form)[0]}
