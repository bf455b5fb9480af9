"""Gates: what must be right before it is timed.

Ours is judged at a few hundred tokens by the recurrence in float64, as everywhere, and at the size
that is timed by the torch backend, whose forms are judged at every size that the tests can afford.
A rival of the same function is judged at that size by ours. A model's gate asks whether reading
and stepping agree with the parallel form.
"""

import torch
from torch import Tensor

from retnet.bench.gates import Named, OpInputs, Results, all_of, budgets, judge, judge_plain
from retnet.bench.gpu.cases import OpCase
from retnet.bench.gpu.rivals import Forward
from retnet.bench.record import Gate
from retnet.mixers.retention import log_decays
from retnet.model import Decoder
from retnet.ops import retention
from retnet.types import Backend, Form

SHORT = 300  # tokens: several chunks of any size in use, and a part of one
ROUNDING = 0.02  # of the root mean square: bfloat16 rounds by 0.002, a few times over
MODEL_ROUNDING = 0.1  # of logits' deviation: through dozens of layers
PLAIN: tuple[Form, ...] = ("parallel", "recurrent")


def draw_inputs(case: OpCase, device: torch.device) -> OpInputs:
    """Random inputs, the same every time; keys have the size that a mixer gives them."""
    random = torch.Generator(device).manual_seed(0)

    def draw(width: int) -> Tensor:
        shape = (case.B, case.T, case.H, width)
        return torch.randn(shape, generator=random, device=device, dtype=torch.bfloat16)

    q, k, v, d_o = (draw(width) for width in (case.D_k, case.D_k, case.D_v, case.D_v))
    return OpInputs(q, k * case.D_k**-0.5, v, d_o, log_decays("pow2", case.H).to(device))


def ours(inputs: OpInputs, backend: Backend, form: Form = "chunkwise") -> Forward:
    """Our op as a function of q, k and v."""
    return lambda q, k, v: retention(q, k, v, inputs.log_decay, form=form, backend=backend)[0]


def gate_short(inputs: OpInputs, backend: Backend) -> Gate:
    """Judge the first tokens of a row by the recurrence in float64: outputs and gradients."""
    q, k, v, d_o = (x[:1, :SHORT] for x in inputs[:4])
    cut = inputs._replace(q=q, k=k, v=v, d_o=d_o)
    wide = cut._replace(q=q.double(), k=k.double(), v=v.double(), d_o=d_o.double())
    exact = results(ours(wide, "torch", "recurrent"), wide)
    plain: Results = {form: results(ours(cut, "torch", form), cut) for form in PLAIN}
    got = results(ours(cut, backend), cut)
    return all_of([judge_plain(plain, exact), judge(got, exact, budgets(plain, exact))])


def results(forward: Forward, inputs: OpInputs) -> Named:
    """Output, and gradients of q, k and v."""
    leaves = [x.detach().requires_grad_() for x in inputs[:3]]
    o = forward(*leaves)
    grads = torch.autograd.grad(o, leaves, inputs.d_o)
    return dict(zip(("o", "d_q", "d_k", "d_v"), (o.detach(), *grads), strict=True))


def agree(got: Named, want: Named, who: str, rounding: float = ROUNDING) -> Gate:
    """Judge tensors by others that round too: root mean square of the difference; NaN fails."""
    for name, tensor in want.items():
        error = (got[name].float() - tensor.float()).norm() / tensor.float().norm()
        if not error <= rounding:
            return Gate(False, f"{name} differs from {who}'s by {float(error):.1e} of its size")
    return Gate(True, f"{', '.join(want)} agree with {who}'s")


@torch.inference_mode()
def gate_model(model: Decoder) -> Gate:
    """Judge reading 64 tokens and stepping once by the parallel form over all 65."""
    device = model.embed_tokens.weight.device
    random = torch.Generator(device).manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (2, 65), generator=random, device=device)
    whole = model(tokens, form="parallel")[0]
    read, state = model(tokens[:, :-1], form="chunkwise")
    stepped, _ = model(tokens[:, -1:], state)
    got = {"read": read, "stepped": stepped}
    want = {"read": whole[:, :-1], "stepped": whole[:, -1:]}
    return agree(got, want, "the parallel form", MODEL_ROUNDING)
