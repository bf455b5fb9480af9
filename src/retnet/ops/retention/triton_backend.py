"""Retention on a GPU, in Triton: launches, their sizes, and autograd. README.md has the maths."""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from retnet.ops.layout import Layout
from retnet.ops.retention import triton_kernels as kernels

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WIDEST = 512
"""The largest D_k and D_v: a program holds the whole of one of them beside a slice of the other."""

SEGMENT_TOKENS = 1024
"""The fewest tokens of a segment, so that its state, which is written and read, weighs little."""

SWEEPS = 1.5
"""What a walk in segments costs beside one without: the sweep for their states reads half as much
and has about a third of the products. Not measured."""

BLOCK = 1024
"""Numbers of a state that one program of the combination has."""


class Tiles(NamedTuple):
    """What one program of the chunkwise form holds at a time.

    Attributes:
        chunk: tokens.
        columns: of the output's width, and of the state's.
        warps: of 32 threads.
        stages: chunks in shared memory at a time, those being loaded included.
    """

    chunk: int
    columns: int
    warps: int
    stages: int


def tiles(dtype: torch.dtype, D_a: int, D_c: int) -> Tiles:
    """Sizes for scores of width `D_a` and outputs of width `D_c`.

    By rule, from what ptxas reports for an H100 (README.md has the budget): none was timed.
    """
    width = _power(D_a)
    chunk, columns, warps, stages = next(
        sizes for widest, *sizes in _SIZES[dtype] if width <= widest
    )
    return Tiles(chunk, min(columns, _power(D_c)), warps, stages)


_SIZES = {  # the widest D_a, and for it chunk, columns, warps and stages
    torch.bfloat16: ((64, 64, 64, 4, 2), (256, 64, 64, 8, 2), (512, 32, 64, 8, 1)),
    torch.float16: ((64, 32, 64, 4, 1), (128, 32, 64, 8, 1), (512, 32, 32, 8, 1)),
    torch.float32: ((64, 32, 32, 4, 1), (128, 16, 32, 4, 1), (512, 16, 16, 8, 1)),
}


class Cut(NamedTuple):
    """A row cut into pieces that run at the same time.

    Attributes:
        segments: how many.
        tokens: of each but the last, which may be shorter.
    """

    segments: int
    tokens: int


def cut(T: int, programs: int, processors: int, chunk: int) -> Cut:
    """Cut rows of T tokens into so many segments that the walks take least time, by rule.

    The time is taken as the rounds of programs on the chip over the segments, times `SWEEPS` where
    there is more than one segment.

    Args:
        T: tokens of a row.
        programs: rows times heads times slices: what runs at the same time without a cut; 0 of an
            empty batch.
        processors: of the chip (streaming multiprocessors), each with one program at a time.
        chunk: tokens of a chunk; segments are whole chunks.
    """
    most = min(-(-processors // max(programs, 1)), T // SEGMENT_TOKENS)
    best = min(
        range(1, max(most, 1) + 1),
        key=lambda n: -(-programs * n // processors) / n * (SWEEPS if n > 1 else 1),
    )
    tokens = -(-T // (best * chunk)) * chunk
    return Cut(-(-T // tokens), tokens)


class Masks(NamedTuple):
    """What the kernels know of padding and documents, int32; None where every token is real."""

    seen: Tensor | None  # B T, real tokens of the row up to and with this one
    document: Tensor | None  # B T, documents begun in the row so far; at padding -1 minus that


def masks(layout: Layout | None) -> Masks:
    """The masks of a layout, made once per call of a model."""
    if layout is None or (layout.valid is None and layout.starts is None):
        return Masks(None, None)
    key = "retention: masks for triton"
    return layout.shared(key, lambda: _masks(layout.valid, layout.starts))


def _masks(valid: Tensor | None, starts: Tensor | None) -> Masks:
    given = valid if valid is not None else starts
    assert given is not None
    real = torch.ones_like(given) if valid is None else valid
    document = torch.zeros_like(real, dtype=torch.int32)
    if starts is not None:
        document = starts.cumsum(1, dtype=torch.int32)
    document = torch.where(real, document, -1 - document)
    return Masks(real.cumsum(1, dtype=torch.int32), document.contiguous())


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    layout: Layout | None,
) -> tuple[Tensor, Tensor]:
    """One token after the other, in float32 with the state on chip."""
    check(q, v)
    return _Retention.apply(q, k, v, state, log_decay.contiguous(), *masks(layout), None)


def chunkwise(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    layout: Layout | None,
    chunk_size: int | None = None,
    processors: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk with the state on chip; long rows of few heads in several segments.

    Args:
        q: as `retnet.ops.retention` has it, and so the next five.
        k: likewise.
        v: likewise.
        log_decay: likewise.
        state: likewise.
        layout: likewise.
        chunk_size: 16, 32 or 64, as far as a program fits on chip; None chooses.
        processors: of the chip; None asks it.
    """
    check(q, v)
    B, T, H, D_k = q.shape
    D_v = v.shape[-1]
    roles = tiles(q.dtype, D_k, D_v), tiles(q.dtype, D_v, D_k)
    chunks = [C for C in (16, 32, 64) if min(role.chunk for role in roles) >= C]
    if chunk_size is not None and chunk_size not in chunks:
        raise ValueError(
            f"chunk_size ({chunk_size}) must be one of {chunks} for the triton backend, {q.dtype}, "
            f"D_k {D_k} and D_v {D_v}, so that a program fits on chip; leave it out to choose"
        )
    if processors is None:
        processors = _processors(q.device)
    slices = min(-(-D // role.columns) for D, role in zip((D_v, D_k), roles, strict=True))
    longest = chunk_size or max(role.chunk for role in roles)
    launch = Launch(chunk_size, cut(T, B * H * slices, processors, longest))
    return _Retention.apply(q, k, v, state, log_decay.contiguous(), *masks(layout), launch)


class Launch(NamedTuple):
    """How the chunkwise form is to run: the caller's chunk, if any, and the segments."""

    chunk: int | None
    cut: Cut


def _processors(device: torch.device) -> int:
    """Streaming multiprocessors; the interpreter has one. PyTorch keeps them: nothing waits."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def why_not(dtype: torch.dtype, D_k: int, D_v: int) -> str | None:
    """Why these kernels do not take such inputs, with the remedy; None if they do."""
    if dtype not in DTYPES:
        return (
            f"q has dtype {dtype}; the triton backend takes bfloat16, float16 and float32: cast "
            'with .to(), or use backend="torch"'
        )
    if max(D_k, D_v) > WIDEST:
        return (
            f"D_k ({D_k}) and D_v ({D_v}) must be at most {WIDEST} for the triton backend: use "
            'more and narrower heads, or backend="torch"'
        )
    return None


def check(q: Tensor, v: Tensor) -> None:
    """Refuse, for a caller who named this backend, what the kernels do not take."""
    reason = why_not(q.dtype, q.shape[-1], v.shape[-1])
    if reason is not None:
        raise ValueError(reason)
    if not (q.is_cuda or kernels.INTERPRETED):
        raise ValueError(
            f"q is on {q.device}; the triton backend needs CUDA tensors: move q, k, v and "
            'log_decay with .to("cuda"), or use backend="torch". To try the kernels without a '
            "GPU, slowly, start Python with TRITON_INTERPRET=1 in its environment"
        )


def step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> Tensor:
    """One token of each row; `state` is changed in place. See `retention_step_`."""
    check(q, v)
    o = _empty(v)
    with torch.cuda.device_of(q):
        _walk_tokens(q, k, v, o, state, state, log_decay.contiguous(), None, False)
    return o


class _Retention(torch.autograd.Function):
    """One sum, walked in four roles: README.md has the table.

    Keeps its arguments for the backward pass and nothing else: no states.
    """

    @staticmethod
    def forward(  # noqa: PLR0913  (autograd takes tensors one by one)
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        state: Tensor | None,
        log_decay: Tensor,
        count: Tensor | None,
        document: Tensor | None,
        launch: Launch | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, v, state, log_decay, count, document)
        ctx.launch = launch
        ctx.set_materialize_grads(False)
        walk = _Walk(log_decay, Masks(count, document), launch)
        B, _, H, D_k = q.shape
        S = torch.empty(B, H, D_k, v.shape[-1], dtype=torch.float32, device=q.device)
        o = _empty(v)
        with torch.cuda.device_of(q):
            walk(q, k, v, o, walk.entering(k, v, state), S)
        return o, S

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        d_o, d_S = grads
        q, k, v, state, log_decay, count, document = ctx.saved_tensors
        walk = _Walk(log_decay, Masks(count, document), ctx.launch)
        need_q, need_k, need_v, need_state = ctx.needs_input_grad[:4]
        d_o = torch.zeros_like(v) if d_o is None else d_o
        d_q = d_k = d_v = d_state = None
        with torch.cuda.device_of(q):
            if need_q:
                d_q = _empty(q)
                walk(d_o, v, k, d_q, _turned(walk.entering(k, v, state)), None)
            need_v = need_v or need_state  # that walk finds both
            if need_k or need_v:
                states = walk.entering(q, d_o, d_S, reverse=True)
                if need_k:
                    d_k = _empty(k)
                    walk(v, d_o, q, d_k, _turned(states), None, reverse=True)
                if need_v:
                    d_v = _empty(v)
                    d_state = torch.empty_like(state) if need_state else None
                    walk(k, q, d_o, d_v, states, d_state, reverse=True)
        return d_q, d_k, d_v, d_state, None, None, None, None


class _Walk(NamedTuple):
    """How the rows of one call are walked."""

    log_decay: Tensor
    masks: Masks
    launch: Launch | None  # None: token by token

    def entering(
        self, b: Tensor, c: Tensor, given: Tensor | None, reverse: bool = False
    ) -> Tensor | None:
        """The state that enters each segment, (B, H, segments, D_a, D_c); None for zeros."""
        if self.launch is None or self.launch.cut.segments == 1:
            return None if given is None else given[:, :, None]
        return _entering_segments(b, c, given, self.log_decay, self.masks, self.launch, reverse)

    def __call__(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        out: Tensor,
        entering: Tensor | None,
        leaving: Tensor | None,
        reverse: bool = False,
    ) -> None:
        """Write out, and the state after the walk to `leaving` if there is one."""
        if self.launch is None:
            given = None if entering is None else entering[:, :, 0]
            document = self.masks.document
            _walk_tokens(a, b, c, out, given, leaving, self.log_decay, document, reverse)
            return
        _walk_chunks(
            a, b, c, out, entering, leaving, self.log_decay, self.masks, self.launch, reverse
        )


def _walk_chunks(  # noqa: PLR0913  (the operands of a kernel)
    a: Tensor,
    b: Tensor,
    c: Tensor,
    out: Tensor,
    entering: Tensor | None,
    leaving: Tensor | None,
    log_decay: Tensor,
    masks: Masks,
    launch: Launch,
    reverse: bool,
) -> None:
    B, T, H, D_a = a.shape
    D_c = c.shape[-1]
    size = tiles(a.dtype, D_a, D_c)
    segments, tokens = launch.cut
    a, b, c = _dense(a), _dense(b), _dense(c)
    grid = -(-D_c // size.columns) * segments * H * B
    cast(Any, kernels.retention_chunkwise_walk_kernel)[(grid,)](
        a,
        b,
        c,
        out,
        log_decay,
        *masks,
        entering,
        leaving,
        T,
        tokens,
        segments,
        H,
        *a.stride()[:3],
        *b.stride()[:3],
        *c.stride()[:3],
        *out.stride()[:3],
        *((0,) * 5 if entering is None else entering.stride()),
        *((0,) * 4 if leaving is None else leaving.stride()),
        DA=D_a,
        DC=D_c,
        BA=_power(D_a),
        BC=size.columns,
        C=launch.chunk or size.chunk,
        MASKED=masks.seen is not None,
        REVERSE=reverse,
        num_warps=size.warps,
        num_stages=size.stages,
        **kernels.PRODUCTS[a.dtype],
    )


def _entering_segments(
    b: Tensor,
    c: Tensor,
    given: Tensor | None,
    log_decay: Tensor,
    masks: Masks,
    launch: Launch,
    reverse: bool,
) -> Tensor:
    """What each segment adds to a state, and from it the state that enters each."""
    B, T, H, D_a = b.shape
    D_c = c.shape[-1]
    size = tiles(b.dtype, D_a, D_c)
    segments, tokens = launch.cut
    b, c = _dense(b), _dense(c)
    states = torch.empty(B, H, segments, D_a, D_c, dtype=torch.float32, device=b.device)
    masked = masks.seen is not None
    programs = -(-D_c // size.columns) * (segments - 1) * H * B
    cast(Any, kernels.retention_chunkwise_segment_kernel)[(programs,)](
        b,
        c,
        log_decay,
        *masks,
        states,
        T,
        tokens,
        segments,
        H,
        *b.stride()[:3],
        *c.stride()[:3],
        DA=D_a,
        DC=D_c,
        BA=_power(D_a),
        BC=size.columns,
        C=launch.chunk or size.chunk,
        MASKED=masked,
        REVERSE=reverse,
        num_warps=size.warps,
        num_stages=size.stages,
        **kernels.PRODUCTS[b.dtype],
    )
    cast(Any, kernels.retention_chunkwise_combine_kernel)[(-(-D_a * D_c // BLOCK) * H * B,)](
        states,
        None if given is None else given.contiguous(),
        log_decay,
        *masks,
        T,
        tokens,
        segments,
        H,
        SIZE=D_a * D_c,
        BLOCK=BLOCK,
        MASKED=masked,
        REVERSE=reverse,
    )
    return states


def _walk_tokens(  # noqa: PLR0913  (the operands of a kernel)
    a: Tensor,
    b: Tensor,
    c: Tensor,
    out: Tensor,
    entering: Tensor | None,
    leaving: Tensor | None,
    log_decay: Tensor,
    document: Tensor | None,
    reverse: bool,
) -> None:
    B, T, H, D_a = a.shape
    D_c = c.shape[-1]
    a, b, c = _dense(a), _dense(b), _dense(c)
    columns = 32 if D_a > 64 else 64
    cast(Any, kernels.retention_recurrent_walk_kernel)[(-(-D_c // columns) * H * B,)](
        a,
        b,
        c,
        out,
        log_decay,
        document,
        entering,
        leaving,
        T,
        H,
        *a.stride()[:3],
        *b.stride()[:3],
        *c.stride()[:3],
        *out.stride()[:3],
        *((0,) * 4 if entering is None else entering.stride()),
        *((0,) * 4 if leaving is None else leaving.stride()),
        DA=D_a,
        DC=D_c,
        BA=_power(D_a),
        BC=columns,
        MASKED=document is not None,
        REVERSE=reverse,
        num_warps=4,
    )


def _empty(x: Tensor) -> Tensor:
    """Of x's shape and dtype, in the order of its axes whatever x's is: kernels write rows."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _dense(x: Tensor) -> Tensor:
    """x with its last axis without gaps, which the kernels count on; a copy only if need be."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _turned(states: Tensor | None) -> Tensor | None:
    """The same states for a walk whose scores are over D_v: a view."""
    return None if states is None else states.mT


def _power(D: int) -> int:
    """The next power of two that a tile can have."""
    return max(16, 1 << (D - 1).bit_length())
