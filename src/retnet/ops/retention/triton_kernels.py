"""Retention's Triton kernels: maths only. Who launches them, and with what, is in triton_backend.

Every pass of retention, forward or backward, is one sum, walked forward or in reverse:

    out_r = sum over s of decay^|r - s| (a_r . b_s) c_s        s <= r, or s >= r in reverse

with a state `S = sum decay^... b c^T` that stands for everything already passed. README.md has
the table of what a, b and c are in each pass. `DA` is the width of a and b, `DC` that of c and
out; a program has all of DA and a slice of DC, and keeps the slice of S, transposed, on chip.

The decorator `no_type_check` keeps the tests' type checker out of functions that Triton compiles.
"""

from typing import no_type_check

import torch
import triton
import triton.knobs
import triton.language as tl

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
"""Whether the kernels below run in Triton's interpreter, on the CPU: decided when they are made."""

PRODUCTS = {
    torch.bfloat16: {"X": tl.bfloat16, "PRECISION": "ieee"},
    torch.float16: {"X": tl.float32, "PRECISION": "tf32"},
    torch.float32: {"X": tl.float32, "PRECISION": "ieee"},
}
"""How matrix products run, by the inputs' dtype. float32 is float32, never TF32. float16 inputs
are multiplied as they are, but scores and states would overflow it: they become TF32, which has
float16's ten bits of fraction and float32's range."""

LOG2_E = tl.constexpr(1.4426950408889634)
IN_INTERPRETER = tl.constexpr(INTERPRETED)


@triton.jit
@no_type_check
def _rounded(x, X: tl.constexpr):
    """float32 to X, to nearest even."""
    if IN_INTERPRETER and X == tl.bfloat16:  # which would cut the lower bits off
        bits = x.to(tl.int32, bitcast=True)
        x = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return x.to(X)


@triton.jit
@no_type_check
def _product(a, b, total, PRECISION: tl.constexpr):
    """`a @ b + total` in float32."""
    if IN_INTERPRETER:  # which multiplies bfloat16 as if its bits were whole numbers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
@no_type_check
def _log2_decay(log_decay, head):
    """Per token, in float32; rounded once if it comes in float64."""
    return (tl.load(log_decay + head).to(tl.float64) * LOG2_E).to(tl.float32)


@triton.jit
@no_type_check
def _document_at(document, t):
    """The document that token t belongs to, padding or not; 0, the first, before the row."""
    code = tl.load(document + t, mask=t >= 0, other=0)
    return tl.where(code < 0, -1 - code, code)


@triton.jit
@no_type_check
def _count_at(count, t):
    """Real tokens of the row up to and with token t; none before the row."""
    return tl.load(count + t, mask=t >= 0, other=0)


@triton.jit
@no_type_check
def _carry(log2_decay, count, document, start, end, MASKED: tl.constexpr):
    """What is left of a state that entered before token `start` after token `end - 1`."""
    if MASKED:
        counted = _count_at(count, end - 1) - _count_at(count, start - 1)
        same = _document_at(document, start - 1) == _document_at(document, end - 1)
        return tl.where(same, tl.exp2(log2_decay * counted), 0.0)
    else:
        return tl.exp2(log2_decay * (end - start))


@triton.jit
@no_type_check
def _weights(
    log2_decay,
    count,
    document,
    start,
    end,
    C: tl.constexpr,
    MASKED: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Decays of the chunk [start, end), seen in the direction of the walk.

    Returns:
        pairs: C C, from source s (row) to output r (column); 0 where r must not see s.
        enter: C, from the state that enters to output r.
        leave: C, from source s to the state that leaves.
        carry: from the state that enters to the one that leaves.
    """
    i = tl.arange(0, C)
    t = start + i
    inside = t < end
    end = tl.minimum(start + C, end)
    if MASKED:
        n = tl.load(count + t, mask=inside, other=0)
        code = tl.load(document + t, mask=inside, other=-1)  # as padding
        real = code >= 0
        here = tl.where(real, code, -1 - code)
        before, last = _count_at(count, start - 1), _count_at(count, end - 1)
        from_start = real & (here == _document_at(document, start - 1))
        to_end = real & (here == _document_at(document, end - 1))
        see = real[:, None] & real[None, :] & (here[:, None] == here[None, :])
    else:
        n = i + 1
        before, last = 0, end - start
        from_start, to_end = inside, inside
        see = inside[:, None] & inside[None, :]
    # Exponents are clamped first: a strong decay must not make infinities where a mask says 0.
    from_start = tl.where(from_start, tl.exp2(log2_decay * tl.maximum(n - before, 0)), 0.0)
    to_end = tl.where(to_end, tl.exp2(log2_decay * tl.maximum(last - n, 0)), 0.0)
    carry = _carry(log2_decay, count, document, start, end, MASKED)
    apart = n[None, :] - n[:, None]
    if REVERSE:
        see = see & (i[:, None] >= i[None, :])
        pairs = tl.where(see, tl.exp2(log2_decay * tl.maximum(-apart, 0)), 0.0)
        return pairs, to_end, from_start, carry
    else:
        see = see & (i[:, None] <= i[None, :])
        pairs = tl.where(see, tl.exp2(log2_decay * tl.maximum(apart, 0)), 0.0)
        return pairs, from_start, to_end, carry


@triton.jit
@no_type_check
def _tile(base, stride, t, columns, end, D: tl.constexpr):
    """Rows t of one head; zeros after `end` and beyond width D."""
    mask = (t < end)[:, None] & (columns < D)[None, :]
    return tl.load(base + t.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
@no_type_check
def _absorb(S, carry, leave, b, c, X: tl.constexpr, PRECISION: tl.constexpr):
    """The state after a chunk, BC BA: `S` decayed, plus the chunk's pairs of b and c."""
    weighted = _rounded(c.to(tl.float32) * leave[:, None], X)
    return _product(tl.trans(weighted), b.to(X), S * carry, PRECISION)


@triton.jit(do_not_specialize=["T", "segment"])
@no_type_check
def retention_chunkwise_walk_kernel(
    a,
    b,
    c,
    out,
    log_decay,
    count,
    document,
    entering,
    leaving,
    T,
    segment,
    segments,
    H,
    a_b,
    a_t,
    a_h,
    b_b,
    b_t,
    b_h,
    c_b,
    c_t,
    c_h,
    out_b,
    out_t,
    out_h,
    entering_b,
    entering_h,
    entering_s,
    entering_a,
    entering_c,
    leaving_b,
    leaving_h,
    leaving_a,
    leaving_c,
    DA: tl.constexpr,
    DC: tl.constexpr,
    BA: tl.constexpr,
    BC: tl.constexpr,
    C: tl.constexpr,
    X: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """One segment of one row and head, for a slice of out's columns.

    Grid: slices of DC (fastest, so that programs that read the same a and b run together),
    segments, heads, rows. `entering` has one state per segment, or is None for zeros; `leaving`,
    if it is not None, gets the state after the walk's last segment. `X` is the dtype in which
    scores and states meet a matrix product.
    """
    SLICES: tl.constexpr = (DC + BC - 1) // BC
    pid = tl.program_id(0)
    s = pid // SLICES % segments
    row = (pid // SLICES // segments // H).to(tl.int64)
    head = (pid // SLICES // segments % H).to(tl.int64)
    columns_a = tl.arange(0, BA)
    columns_c = pid % SLICES * BC + tl.arange(0, BC)
    state_mask = (columns_c < DC)[:, None] & (columns_a < DA)[None, :]
    a += row * a_b + head * a_h
    b += row * b_b + head * b_h
    c += row * c_b + head * c_h
    out += row * out_b + head * out_h
    if MASKED:
        count += row * T
        document += row * T
    log2_decay = _log2_decay(log_decay, head)

    S = tl.zeros((BC, BA), dtype=tl.float32)
    if entering is not None:
        at = columns_c.to(tl.int64)[:, None] * entering_c + columns_a[None, :] * entering_a
        entering += row * entering_b + head * entering_h + s.to(tl.int64) * entering_s
        S += tl.load(entering + at, mask=state_mask, other=0.0)

    first = s * segment
    end = tl.minimum(first + segment, T)
    chunks = tl.cdiv(end - first, C)
    for n in range(chunks):
        if REVERSE:
            start = first + (chunks - 1 - n) * C
        else:
            start = first + n * C
        t = start + tl.arange(0, C)
        a_tile = _tile(a, a_t, t, columns_a, end, DA)  # C BA
        b_tile = _tile(b, b_t, t, columns_a, end, DA)  # C BA
        c_tile = _tile(c, c_t, t, columns_c, end, DC)  # C BC
        pairs, enter, leave, carry = _weights(
            log2_decay, count, document, start, end, C, MASKED, REVERSE
        )
        # Transposed throughout, source by output: Triton 3.4 to 3.7 may miscompile a product with
        # a transposed score tile on Hopper, and S goes into its product from registers.
        nothing = tl.zeros((C, C), dtype=tl.float32)
        scores = _product(b_tile, tl.trans(a_tile), nothing, PRECISION)  # C C
        scores = _rounded(tl.where(pairs > 0.0, scores * pairs, 0.0), X)
        nothing = tl.zeros((BC, C), dtype=tl.float32)
        o = _product(_rounded(S, X), tl.trans(a_tile.to(X)), nothing, PRECISION)  # BC C
        o *= enter[None, :]
        o = _product(tl.trans(c_tile.to(X)), scores, o, PRECISION)
        written = out + t.to(tl.int64)[:, None] * out_t + columns_c[None, :]
        mask = (t < end)[:, None] & (columns_c < DC)[None, :]
        tl.store(written, _rounded(tl.trans(o), out.dtype.element_ty), mask=mask)
        S = _absorb(S, carry, leave, b_tile, c_tile, X, PRECISION)

    if leaving is not None:
        at_end = s == segments - 1
        if REVERSE:
            at_end = s == 0
        at = columns_c.to(tl.int64)[:, None] * leaving_c + columns_a[None, :] * leaving_a
        leaving += row * leaving_b + head * leaving_h
        tl.store(leaving + at, S, mask=state_mask & at_end)


@triton.jit(do_not_specialize=["T", "segment"])
@no_type_check
def retention_chunkwise_segment_kernel(
    b,
    c,
    log_decay,
    count,
    document,
    states,
    T,
    segment,
    segments,
    H,
    b_b,
    b_t,
    b_h,
    c_b,
    c_t,
    c_h,
    DA: tl.constexpr,
    DC: tl.constexpr,
    BA: tl.constexpr,
    BC: tl.constexpr,
    C: tl.constexpr,
    X: tl.constexpr,
    PRECISION: tl.constexpr,
    MASKED: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """What each segment adds to the state, written where the next segment's entering state goes.

    Grid: as the walk's, without the walk's last segment, which nothing follows. `states` is
    (B, H, segments, DA, DC), contiguous.
    """
    SLICES: tl.constexpr = (DC + BC - 1) // BC
    pid = tl.program_id(0)
    s = pid // SLICES % (segments - 1)
    row = (pid // SLICES // (segments - 1) // H).to(tl.int64)
    head = (pid // SLICES // (segments - 1) % H).to(tl.int64)
    if REVERSE:
        s += 1
        following = s - 1
    else:
        following = s + 1
    columns_a = tl.arange(0, BA)
    columns_c = pid % SLICES * BC + tl.arange(0, BC)
    b += row * b_b + head * b_h
    c += row * c_b + head * c_h
    if MASKED:
        count += row * T
        document += row * T
    log2_decay = _log2_decay(log_decay, head)

    S = tl.zeros((BC, BA), dtype=tl.float32)
    first = s * segment
    end = tl.minimum(first + segment, T)
    chunks = tl.cdiv(end - first, C)
    for n in range(chunks):
        if REVERSE:
            start = first + (chunks - 1 - n) * C
        else:
            start = first + n * C
        t = start + tl.arange(0, C)
        b_tile = _tile(b, b_t, t, columns_a, end, DA)  # C BA
        c_tile = _tile(c, c_t, t, columns_c, end, DC)  # C BC
        _, _, leave, carry = _weights(log2_decay, count, document, start, end, C, MASKED, REVERSE)
        S = _absorb(S, carry, leave, b_tile, c_tile, X, PRECISION)

    states += ((row * H + head) * segments + following) * DA * DC
    at = columns_a[None, :] * DC + columns_c[:, None]
    tl.store(states + at, S, mask=(columns_c < DC)[:, None] & (columns_a < DA)[None, :])


@triton.jit(do_not_specialize=["T", "segment"])
@no_type_check
def retention_chunkwise_combine_kernel(
    states,
    given,
    log_decay,
    count,
    document,
    T,
    segment,
    segments,
    H,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    MASKED: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Turn what each segment adds into the state that enters each, in place.

    `E_next = carry E + own`, one scalar per segment, row and head. Grid: blocks of the state's
    SIZE numbers, heads, rows. `given` (B, H, SIZE), contiguous, enters the walk's first segment;
    None for zeros.
    """
    BLOCKS: tl.constexpr = (SIZE + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    row = (pid // BLOCKS // H).to(tl.int64)
    head = (pid // BLOCKS % H).to(tl.int64)
    at = pid % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    mask = at < SIZE
    if MASKED:
        count += row * T
        document += row * T
    log2_decay = _log2_decay(log_decay, head)
    slot = states + (row * H + head) * segments * SIZE + at
    if REVERSE:
        slot += (segments - 1).to(tl.int64) * SIZE
    E = tl.zeros((BLOCK,), dtype=tl.float32)
    if given is not None:
        E += tl.load(given + (row * H + head) * SIZE + at, mask=mask, other=0.0)
    tl.store(slot, E, mask=mask)
    for n in range(segments - 1):
        if REVERSE:
            first = (segments - 1 - n) * segment
            slot -= SIZE
        else:
            first = n * segment
            slot += SIZE
        end = tl.minimum(first + segment, T)
        carry = _carry(log2_decay, count, document, first, end, MASKED)
        E = carry * E + tl.load(slot, mask=mask, other=0.0)
        tl.store(slot, E, mask=mask)


@triton.jit(do_not_specialize=["T"])
@no_type_check
def retention_recurrent_walk_kernel(
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
    a_b,
    a_t,
    a_h,
    b_b,
    b_t,
    b_h,
    c_b,
    c_t,
    c_h,
    out_b,
    out_t,
    out_h,
    entering_b,
    entering_h,
    entering_a,
    entering_c,
    leaving_b,
    leaving_h,
    leaving_a,
    leaving_c,
    DA: tl.constexpr,
    DC: tl.constexpr,
    BA: tl.constexpr,
    BC: tl.constexpr,
    MASKED: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """One row and head, token by token in float32, for a slice of out's columns.

    Grid: slices of DC, heads, rows. `leaving` may be `entering`: a program reads and writes only
    its own slice of the state. Without rounding anything but the outputs.
    """
    SLICES: tl.constexpr = (DC + BC - 1) // BC
    pid = tl.program_id(0)
    row = (pid // SLICES // H).to(tl.int64)
    head = (pid // SLICES % H).to(tl.int64)
    columns_a = tl.arange(0, BA)
    columns_c = pid % SLICES * BC + tl.arange(0, BC)
    mask_a, mask_c = columns_a < DA, columns_c < DC
    state_mask = mask_a[:, None] & mask_c[None, :]
    a += row * a_b + head * a_h + columns_a
    b += row * b_b + head * b_h + columns_a
    c += row * c_b + head * c_h + columns_c
    out += row * out_b + head * out_h + columns_c
    if REVERSE:
        last = (T - 1).to(tl.int64)
        a += last * a_t
        b += last * b_t
        c += last * c_t
        out += last * out_t
    if MASKED:
        document += row * T
    decay = tl.exp2(_log2_decay(log_decay, head))

    S = tl.zeros((BA, BC), dtype=tl.float32)
    if entering is not None:
        at = columns_a.to(tl.int64)[:, None] * entering_a + columns_c[None, :] * entering_c
        entering += row * entering_b + head * entering_h
        S += tl.load(entering + at, mask=state_mask, other=0.0)
    for n in range(T):
        a_n = tl.load(a, mask=mask_a, other=0.0).to(tl.float32)  # BA
        b_n = tl.load(b, mask=mask_a, other=0.0).to(tl.float32)  # BA
        c_n = tl.load(c, mask=mask_c, other=0.0).to(tl.float32)  # BC
        if MASKED:
            t = n
            if REVERSE:
                t = T - 1 - n
            real = tl.load(document + t) >= 0
            starts = _document_at(document, t) != _document_at(document, t - 1)
            if not REVERSE:
                S = tl.where(starts, 0.0, S)
        pair = b_n[:, None] * c_n[None, :]
        if REVERSE:
            seen = S + pair
            left = decay * seen
        else:
            seen = decay * S + pair
            left = seen
        o = tl.sum(a_n[:, None] * seen, 0)
        if MASKED:
            o = tl.where(real, o, 0.0)
            S = tl.where(real, left, S)
            if REVERSE:
                S = tl.where(starts, 0.0, S)
        else:
            S = left
        tl.store(out, _rounded(o, out.dtype.element_ty), mask=mask_c)
        if REVERSE:
            a -= a_t
            b -= b_t
            c -= c_t
            out -= out_t
        else:
            a += a_t
            b += b_t
            c += c_t
            out += out_t
    if leaving is not None:
        at = columns_a.to(tl.int64)[:, None] * leaving_a + columns_c[None, :] * leaving_c
        leaving += row * leaving_b + head * leaving_h
        tl.store(leaving + at, S, mask=state_mask)
