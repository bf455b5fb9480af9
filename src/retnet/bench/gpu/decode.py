"""Decoding on a GPU after contexts of several lengths, with retention and with attention.

States are filled with random numbers instead of reading a text of that length: a step costs the
same whatever the numbers are. What does not fit is recorded as out of memory.
"""

from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from retnet.bench.gpu.bench import Bench, Part, Step, one_line
from retnet.bench.gpu.cases import DECODE, QUICK_DECODE, DecodeCase
from retnet.bench.gpu.device import Call, clock_of, free_memory, is_out_of_memory, watch_memory
from retnet.bench.gpu.gates import agree, gate_model
from retnet.bench.gpu.models import WHO, build, configs
from retnet.bench.record import Gate, GateFailed
from retnet.bench.timing import Spread, milliseconds, rates
from retnet.mixers.branch import Steps
from retnet.model import Decoder, DecoderState
from retnet.model.cuda_graph import WARM_UPS, GraphedDecoder
from retnet.model.decoder import Layer
from retnet.ops.attention import AttentionState
from retnet.ops.retention.buffered import CAPACITY

BENCH = "gpu/decode"
CHECKED = CAPACITY + 4  # recorded steps that are judged: more than a buffer's round
NOT_JUDGED = Gate(True, "nothing was computed that could be wrong")


class Judged(NamedTuple):
    """A model in memory.

    Attributes:
        model: in bfloat16.
        gate: its verdict.
        graphs: whether its steps can be recorded as CUDA graphs and then compute the same.
    """

    model: Decoder
    gate: Gate
    graphs: bool


class OneModel:
    """The model that is measured now: both together would leave less memory for states."""

    def __init__(self, case: DecodeCase) -> None:
        self._case = case
        self._who = ""
        self._judged: Judged | None = None

    def get(self, bench: Bench, who: str) -> Judged:
        """The decoder with retention or with attention, made when first asked for.

        Raises:
            GateFailed: what it computes is wrong.
            torch.OutOfMemoryError: it does not fit.
        """
        if self._judged is None or self._who != who:
            self.drop(bench)
            config = configs(self._case.config)[who]
            model = build(config, bench.device, torch.bfloat16).eval()
            graphs = _can_record(bench, model, who, self._case.batches[0])
            self._judged, self._who = Judged(model, gate_model(model), graphs), who
        self._judged.gate.require()
        return self._judged

    def drop(self, bench: Bench) -> None:
        """Forget it."""
        self._judged = None
        free_memory(bench.device)


def decode_part(quick: bool) -> Part:
    """Each model with each number of rows, then the memory is given back."""
    case = QUICK_DECODE if quick else DECODE
    models = OneModel(case)
    steps = [
        Step(
            f"decoding with {case.name}, {who}, B {B}, context {context:,}",
            partial(bench_context, case=case, models=models, who=who, B=B, context=context),
            0.0 if quick else 8.0,
        )
        for who in WHO
        for B in case.batches
        for context in case.contexts
    ]
    return Part([*steps, Step("giving back memory", models.drop, 0.0)], 0.0 if quick else 150.0)


def bench_context(
    bench: Bench, *, case: DecodeCase, models: OneModel, who: str, B: int, context: int
) -> None:
    """Measure one number of rows and one length: eager, and as CUDA graphs.

    Raises:
        GateFailed: what the model computes is wrong.
    """
    judged = models.get(bench, who)
    model = judged.model
    fields = {
        "model": case.name,
        "parameters": model.num_parameters(),
        "by": who,
        "B": B,
        "context": context,
        "dtype": "bfloat16",
        **bench.versions,
    }
    for launch, measure in (("eager", _eager), ("graph", _graph))[: 1 + judged.graphs]:
        free_memory(bench.device)
        peak_gib = watch_memory(bench.device)
        gate = judged.gate
        try:
            seconds, size = measure(bench, case, model, B, context)
            metrics = _metrics(bench, model, B, seconds, size)
            metrics["peak_gib"] = Spread.of([peak_gib()])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            metrics, gate = {"out_of_memory": Spread.of([1.0])}, NOT_JUDGED
        bench.session.recorder.add(BENCH, {**fields, "launch": launch}, metrics, gate)


def _metrics(
    bench: Bench, model: Decoder, B: int, seconds: list[float], size: int
) -> dict[str, Spread]:
    """Of a step that reads all weights and the state at least once."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    if not model.config.tie_embeddings:
        weights -= model.embed_tokens.weight.nbytes  # of which it reads a row
    least_s = 1e-9 * (weights + size) / bench.ceilings.copy_gb_per_s.median
    return {
        "step_ms": milliseconds(seconds),
        "tokens_per_s": rates(float(B), seconds),
        "share_of_copy": rates(least_s, seconds),
        "state_gib": Spread.of([size / 2**30]),
    }


@torch.inference_mode()
def _eager(
    bench: Bench, case: DecodeCase, model: Decoder, B: int, context: int
) -> tuple[list[float], int]:
    state, size = random_state(model, B, context, _room(case))
    tokens = torch.zeros(B, dtype=torch.int64, device=bench.device)

    def step() -> None:
        nonlocal state
        logits, state = model(tokens[:, None], state)
        tokens.copy_(logits[:, -1].argmax(-1))

    return _time_blocks(step, bench, case), size


@torch.inference_mode()
def _graph(
    bench: Bench, case: DecodeCase, model: Decoder, B: int, context: int
) -> tuple[list[float], int]:
    """As `_eager`, with recorded steps."""
    assert bench.capture is not None
    state, size = random_state(model, B, context, _room(case))
    tokens = torch.zeros(B, dtype=torch.int64, device=bench.device)
    graphed = GraphedDecoder(model, state, bench.capture)

    def step() -> None:
        tokens.copy_(graphed(tokens).argmax(-1))

    return _time_blocks(step, bench, case), size


def _can_record(bench: Bench, model: Decoder, who: str, B: int) -> bool:
    """Whether recorded steps after a few tokens compute what eager ones do; notes if not."""
    if bench.capture is None:
        return False
    room = max(CHECKED, WARM_UPS + 2)
    tokens = torch.arange(B, device=bench.device)
    recorded, state = (random_state(model, B, 8, room)[0] for _ in range(2))
    try:
        graphed = GraphedDecoder(model, recorded, bench.capture)
    except (RuntimeError, ValueError) as error:  # what cannot be recorded, and a state that grows
        bench.session.skip(f"{who} was not decoded as CUDA graphs: {one_line(error)}")
        return False
    graphed.load(state)
    got = {str(i): graphed(tokens).clone() for i in range(CHECKED)}
    want: dict[str, Tensor] = {}
    with torch.inference_mode():
        for i in range(CHECKED):
            logits, state = model(tokens[:, None], state)
            want[str(i)] = logits[:, -1]
    gate = agree(got, want, "eager steps")
    if not gate.passed:
        bench.session.fail(f"decoding with {who} as CUDA graphs", GateFailed(gate.why))
    return gate.passed


def _time_blocks(step: Call, bench: Bench, case: DecodeCase) -> list[float]:
    """Seconds per step, of blocks of steps, after one block that does not count."""
    clock = clock_of(bench.device)

    def block() -> None:
        for _ in range(case.block):
            step()

    return [clock(block) / case.block for _ in range(1 + case.steps // case.block)][1:]


def _room(case: DecodeCase) -> int:
    """Tokens that a state may be asked to take: those timed, and those of a recording."""
    return case.steps + case.block + WARM_UPS + 2


@torch.inference_mode()
def random_state(model: Decoder, B: int, context: int, room: int) -> tuple[DecoderState, int]:
    """The state of B rows that have read `context` tokens, of random numbers, opened for `room`.

    Layer by layer from the shapes of one row, so that no more is held twice than one layer's.

    Returns:
        The state, and the bytes of what it holds of these tokens.
    """
    held = 0
    device = model.embed_tokens.weight.device
    random = torch.Generator(device).manual_seed(0)
    _, one = model(torch.zeros(1, 1, dtype=torch.int64, device=device))

    def fill(branch: Any, plain: Any) -> Any:
        if plain is None:
            return None
        sizes = [[B, *leaf.shape[1:]] for leaf in plain]
        if isinstance(plain, AttentionState):
            for size in sizes:
                size[2] = context  # one slot for each token
        filled = type(plain)(
            *(
                torch.randn(size, generator=random, device=device, dtype=leaf.dtype)
                for size, leaf in zip(sizes, plain, strict=True)
            )
        )
        nonlocal held
        held += sum(leaf.nbytes for leaf in filled)
        return branch.open_state(filled, room) if isinstance(branch, Steps) else filled

    layers = tuple(
        tuple(fill(*pair) for pair in zip(cast(Layer, layer).branches, states, strict=True))
        for layer, states in zip(model.layers, one.layers, strict=True)
    )
    return DecoderState(one.position.new_full((B,), context), layers), held
