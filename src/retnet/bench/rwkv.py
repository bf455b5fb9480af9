"""RWKV-4, ours beside other people's with the same weights: training, prompts, decoding."""

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor

from retnet.bench.cases import QUICK_RWKVS, RWKVS, RWKVCase
from retnet.bench.gates import (
    Results,
    all_of,
    autocast,
    budgets,
    gate_decoding,
    gate_finite,
    gate_rows,
    gate_size,
    judge,
    judge_plain,
)
from retnet.bench.ours import OURS, WITHOUT_NUMBA, fresh, prefiller_of, trainee_of
from retnet.bench.peers import PeerMissing, rwkv
from retnet.bench.peers.roles import Prefiller, Speaker, Trainee, num_parameters
from retnet.bench.record import Gate, GateFailed
from retnet.bench.session import Session
from retnet.bench.speakers import EXTRA, WEIGHTS, has_compiled, is_ours, our_speakers
from retnet.bench.timing import (
    Effort,
    Spread,
    Turns,
    alternate,
    in_turns,
    milliseconds,
    rates,
    ratios,
)
from retnet.model import Decoder
from retnet.train import keep_freed_memory

TRAIN, PREFILL, DECODE = "rwkv/train", "rwkv/prefill", "rwkv/decode"
TURNS = Turns(num=4, most_calls=32, most_s=0.4)
CONTEXT, GATE_TOKENS, FEW = 64, 64, 33
AGREE = 1e-4  # of the largest logit: float32, in another order

Competitors = Mapping[str, Callable[[], object]]


def bench_rwkv(session: Session) -> None:
    """Measure every case."""
    keep_freed_memory()
    cases = session.choose(RWKVS, QUICK_RWKVS)
    session.plan(len(cases))
    for name, case in cases.items():
        session.begin(f"RWKV {name}")
        try:
            model = decoder(case)
            gate = gate_rwkv(model)
            gate.require()
            {"train": _train, "prefill": _prefill, "decode": _decode}[case.activity](
                case, model, gate, session
            )
        except GateFailed as error:
            session.fail(f"RWKV {name}", error)
    session.end()


def decoder(case: RWKVCase) -> Decoder:
    """A new model, in which the matrices that begin at zero do not, so that all parts work."""
    model = fresh(case.config())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2 and not parameter.any():
                parameter.normal_(0.0, parameter.shape[1] ** -0.5)
    return model


def gate_rwkv(model: Decoder) -> Gate:
    """Judge the form that is measured by the recurrence in float64."""
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(model.config.vocab_size, (1, GATE_TOKENS), generator=random)
    with torch.inference_mode():
        exact = {"logits": deepcopy(model).double()(tokens, form="recurrent")[0]}
        plain: Results = {"recurrent": {"logits": model(tokens, form="recurrent")[0]}}
        got = {"logits": model(tokens, form="chunkwise")[0]}
    return all_of([judge_plain(plain, exact), judge(got, exact, budgets(plain, exact))])


def gate_agree(by: str, theirs: Tensor, ours: Tensor) -> Gate:
    """Judge whether another program computes the same from the same weights and tokens."""
    error = (theirs - ours).abs().max().item() / ours.abs().max().item()
    return Gate(error <= AGREE, f"{by}: logits differ from ours by {error:.1e} of the largest")


def _train(case: RWKVCase, model: Decoder, gate: Gate, session: Session) -> None:
    everyone = {OURS: trainee_of(model)} | _present(
        session, {"transformers": lambda: rwkv.trainee(model)}
    )
    sizes = {who: num_parameters(it.model) for who, it in everyone.items()}
    gate_size(sizes[OURS], sizes).require()
    calls = {who: _step(it, case) for who, it in everyone.items()}
    seconds = alternate(calls, Effort(warmup=0, min_rounds=case.rounds, budget_s=0.0))
    for who, it in everyone.items():
        finite = gate_finite({f"{it.by}: {n}": p for n, p in it.model.named_parameters()})
        metrics = {
            "step_ms": milliseconds(seconds[who]),
            "tokens_per_s": rates(float(case.B * case.T), seconds[who]),
        }
        if who != OURS:
            metrics["time_over_retnet"] = ratios(seconds[who], seconds[OURS])
        fields = _fields(case, it.by, case.dtype, sizes[who])
        session.recorder.add(TRAIN, fields, metrics, all_of([finite, gate]))


def _step(who: Trainee, case: RWKVCase) -> Callable[[], object]:
    """A step on random tokens; the optimizer's moments are there before."""
    random = torch.Generator().manual_seed(0)
    text = torch.randint(case.vocab_size, (case.B, case.T + 1), generator=random)
    optimizer = torch.optim.AdamW(who.model.parameters(), lr=1e-4, fused=True)

    def step(text: Tensor = text) -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast(case.dtype):
            loss = who.loss(text[:, :-1], text[:, 1:])
        loss.backward()
        optimizer.step()

    step(text[:, :FEW])
    return step


def _prefill(case: RWKVCase, model: Decoder, gate: Gate, session: Session) -> None:
    dtype = getattr(torch, case.dtype)
    theirs = _present(session, {"transformers": lambda: rwkv.prefiller(model, dtype)})
    everyone: dict[str, Prefiller] = {
        OURS: prefiller_of(deepcopy(model).to(dtype).eval()),
        **theirs,
    }
    random = torch.Generator().manual_seed(0)
    tokens = torch.randint(case.vocab_size, (1, case.T), generator=random)
    logits = {who: it.read(tokens).float() for who, it in everyone.items()}
    calls = {who: (lambda read=it.read: read(tokens)) for who, it in everyone.items()}
    seconds = alternate(calls, Effort(warmup=0, min_rounds=case.rounds, budget_s=0.0))
    for who, it in everyone.items():
        metrics = {
            "prompt_ms": milliseconds(seconds[who]),
            "tokens_per_s": rates(float(case.T), seconds[who]),
            "kept_bytes": Spread.of([float(it.kept_bytes())]),
        }
        verdict = gate
        if who != OURS:
            metrics["time_over_retnet"] = ratios(seconds[who], seconds[OURS])
            if case.dtype == "float32":
                verdict = all_of([gate, gate_agree(it.by, logits[who], logits[OURS])])
        finite = gate_finite({f"{it.by}: logits": logits[who]})
        fields = _fields(case, it.by, it.dtype, it.parameters)
        session.recorder.add(PREFILL, fields, metrics, all_of([finite, verdict]))


def _decode(case: RWKVCase, model: Decoder, gate: Gate, session: Session) -> None:
    everyone = our_speakers(model.eval(), session)
    compiled = has_compiled(everyone)
    if compiled:
        gate = all_of([gate, *(gate_decoding(model, kind, "numba") for kind in WEIGHTS)])
        gate.require()
    makers: dict[str, Callable[[], Speaker]] = {
        "rwkv": lambda: rwkv.pip_speaker(model),
        "transformers": lambda: rwkv.transformers_speaker(model),
    }
    if case.B == 1:  # neither reads several rows
        everyone |= _present(session, makers)
    opened = {who: it.open(CONTEXT, case.B, EXTRA) for who, it in everyone.items()}
    calls: Competitors = {who: it.steps.__next__ for who, it in opened.items()}
    seconds = in_turns(calls, session.turns(TURNS))
    for who, it in everyone.items():
        metrics = {
            "token_ms": milliseconds(seconds[who]),
            "tokens_per_s": rates(float(case.B), seconds[who]),
            "kept_bytes": Spread.of([float(opened[who].kept_bytes)]),
        }
        for kind in WEIGHTS:
            if not is_ours(who):
                own = f"{OURS if compiled else WITHOUT_NUMBA} {kind}"
                metrics[f"time_over_retnet_{kind}"] = ratios(seconds[who], seconds[own])
        steps = opened[who].steps
        verdict = all_of(
            [gate_finite({f"{who}: logits": steps.logits}), gate_rows(who, steps.logits), gate]
        )
        fields = _fields(case, it.by, it.dtype, it.parameters)
        session.recorder.add(DECODE, fields, metrics, verdict)


def _present(session: Session, makers: Mapping[str, Callable[[], object]]) -> dict:
    """Those that are installed; the session notes the others."""
    found = {}
    for who, make in makers.items():
        try:
            found[who] = make()
        except PeerMissing as missing:
            session.skip(missing)
    return found


def _fields(case: RWKVCase, by: str, dtype: str, parameters: int) -> dict[str, str | int]:
    return {
        "model": case.model,
        "parameters": parameters,
        "by": by,
        "dtype": dtype,
        "B": case.B,
        "T": CONTEXT if case.activity == "decode" else case.T,
    }
