"""The instructions of a program, compiled by Numba (README.md says how threads share them).

Addresses become arrays here and nowhere else. All numbers between instructions are float32.
"""

from collections.abc import Callable
from inspect import unwrap
from math import erf
from typing import Any

import numpy as np
from numba import carray, njit
from numba import float32 as f4
from numba import int32 as i4

from retnet.ops.program.intrinsics import (
    add_release,
    as_float,
    dots_of,
    exchange_if,
    load_acquire,
    pointer,
    store_release,
)
from retnet.ops.program.table import (
    ACTIVATION,
    ACTIVE_FROM,
    ACTIVE_TO,
    ADD,
    BFLOAT16,
    BIAS,
    BLOCK,
    COPY,
    COS,
    D_K,
    D_V,
    DECAYS,
    EMBED,
    EPS,
    FACTOR,
    FLOAT32,
    GATE,
    GATE_STRIDE,
    GELU,
    GROUP,
    HEADS,
    IN,
    IN_STRIDE,
    INT8,
    INTERLEAVED,
    ITEMS,
    KEYS,
    KIND,
    LINEAR,
    NORM,
    NORM_BIAS,
    NORM_WEIGHT,
    NORM_WEIGHTS,
    OP,
    OUT,
    OUT_STRIDE,
    OUTPUTS,
    PADDED,
    PARTS,
    PLACES,
    RETENTION,
    RMS,
    ROWS,
    SCALE,
    SIN,
    SWISH,
    TURNS,
    VALUES,
    WEIGHT,
    WIDTH,
    S,
)

LINE = 8
"""Numbers of a cache line: two counters on one would slow each other down."""

STEP, B, PLACE, TOKENS, SPINS = range(5)
"""Places of a job: the number of the step, rows, tokens in the buffers, the address of the new ones'
ids; and how many helpers are looking here."""

WIDE = 8
"""Vectors of the widest tile."""


def kernel(function: Callable[..., Any]) -> Any:
    """Compile without the checks that tests put around functions, and keep the result on disk.

    Sums may be made in any order; NaN and infinity stay what they are.
    """
    flags = {"reassoc", "contract", "nsz", "arcp"}
    return njit(unwrap(function), nogil=True, fastmath=flags, cache=True, error_model="numpy")


_dots_float32 = {n: dots_of("float32", ROWS if n < 8 else 2, n) for n in (1, 2, 4, 8)}
_dots_bfloat16 = {n: dots_of("bfloat16", ROWS if n < 8 else 2, n) for n in (1, 2, 4, 8)}
_dots_int8 = {n: dots_of("int8", ROWS if n < 8 else 2, n) for n in (1, 2, 4, 8)}
_f1, _f2, _f4, _f8 = _dots_float32.values()
_b1, _b2, _b4, _b8 = _dots_bfloat16.values()
_i1, _i2, _i4, _i8 = _dots_int8.values()


@kernel
def floats(address, size):
    """The float32 numbers at an address."""
    return carray(pointer(address), (size,), np.float32)


@kernel
def exp(x):
    """e^x to within two roundings, of float32 in [-87, 88]; beyond, the value there."""
    x = min(max(x, f4(-87.0)), f4(88.0))
    n = np.floor(x * f4(1.4426950408889634) + f4(0.5))
    r = x - n * f4(0.693359375) + n * f4(2.12194440e-4)  # ln 2 in two parts (Cody and Waite)
    p = f4(1.0 / 5040)
    p = p * r + f4(1.0 / 720)
    p = p * r + f4(1.0 / 120)
    p = p * r + f4(1.0 / 24)
    p = p * r + f4(1.0 / 6)
    p = p * r + f4(0.5)
    p = p * r + f4(1.0)
    p = p * r + f4(1.0)
    return p * as_float((i4(n) + i4(127)) << i4(23))


@kernel
def activate(y, kind):
    """Apply an activation in place."""
    if kind == SWISH:
        for i in range(len(y)):
            y[i] = y[i] / (f4(1.0) + exp(-y[i]))
    elif kind == GELU:
        for i in range(len(y)):
            y[i] = f4(0.5) * y[i] * f4(1.0 + erf(y[i] * 0.7071067811865476))
    else:
        for i in range(len(y)):
            y[i] = max(y[i], f4(0.0))


@kernel
def normalize(y, norm, eps, weight, bias):
    """Normalise numbers in place; weight and bias may be empty."""
    n = len(y)
    if norm != RMS:
        mean = f4(0.0)
        for i in range(n):
            mean += y[i]
        mean /= f4(n)
        for i in range(n):
            y[i] -= mean
    square = f4(0.0)
    for i in range(n):
        square += y[i] * y[i]
    scale = f4(1.0) / np.sqrt(square / f4(n) + eps)
    for i in range(n):
        y[i] *= scale
    if len(weight):
        for i in range(n):
            y[i] *= weight[i]
    if len(bias):
        for i in range(n):
            y[i] += bias[i]


@kernel
def read(row, eps, b, y):
    """What COPY and LINEAR read of batch row b, into y: norm(sum of parts) * gate."""
    width, parts = row[WIDTH], row[PARTS]
    group = row[GROUP]
    given = floats(row[IN] + 4 * b * row[IN_STRIDE], parts * width)
    # the parts of a group follow each other
    for start in range(0, width, group):
        out, first = y[start : start + group], parts * start
        for i in range(group):
            out[i] = given[first + i]
        for part in range(1, parts):
            more = given[first + part * group : first + (part + 1) * group]
            for i in range(group):
                out[i] += more[i]
        if row[NORM]:
            known = row[NORM_WEIGHTS]
            weights = floats(row[NORM_WEIGHT], known)
            biases = floats(row[NORM_BIAS], known if row[NORM_BIAS] else 0)
            at = start % known if known else 0
            normalize(out, row[NORM], eps, weights[at : at + group], biases[at : at + group])
    if row[GATE]:
        gate = floats(row[GATE] + 4 * b * row[GATE_STRIDE], width)
        for i in range(width):
            y[i] *= gate[i]
    for i in range(width, len(y)):
        y[i] = f4(0.0)


@kernel
def tile(kind, vectors, weight, x, out, K, x_stride, out_stride):
    """Products of the next weight rows with so many vectors; returns how many rows."""
    if kind == INT8:
        if vectors == 1:
            _i1(weight, x, out, K, x_stride, out_stride)
        elif vectors == 2:
            _i2(weight, x, out, K, x_stride, out_stride)
        elif vectors == 4:
            _i4(weight, x, out, K, x_stride, out_stride)
        else:
            _i8(weight, x, out, K, x_stride, out_stride)
            _i8(weight + 2 * K, x, out + 8, K, x_stride, out_stride)
    elif kind == BFLOAT16:
        if vectors == 1:
            _b1(weight, x, out, K, x_stride, out_stride)
        elif vectors == 2:
            _b2(weight, x, out, K, x_stride, out_stride)
        elif vectors == 4:
            _b4(weight, x, out, K, x_stride, out_stride)
        else:
            _b8(weight, x, out, K, x_stride, out_stride)
            _b8(weight + 4 * K, x, out + 8, K, x_stride, out_stride)
    elif vectors == 1:
        _f1(weight, x, out, K, x_stride, out_stride)
    elif vectors == 2:
        _f2(weight, x, out, K, x_stride, out_stride)
    elif vectors == 4:
        _f4(weight, x, out, K, x_stride, out_stride)
    else:
        _f8(weight, x, out, K, x_stride, out_stride)
        _f8(weight + 8 * K, x, out + 8, K, x_stride, out_stride)


@kernel
def linear(row, item, batch, x, y):
    """LINEAR: a block of outputs of all rows. x: batch PADDED; y: scratch, batch BLOCK."""
    padded, block, kind = row[PADDED], row[BLOCK], row[KIND]
    size = 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1
    first = item * block
    count = min(block, row[OUTPUTS] - first)
    for r in range(0, count, ROWS):  # WEIGHT has whole tiles
        weight = row[WEIGHT] + (first + r) * padded * size
        b = 0
        while b < batch:
            left = batch - b
            vectors = WIDE if left >= WIDE else 4 if left >= 4 else 2 if left >= 2 else 1
            place = y.ctypes.data + 4 * (b * block + r)
            tile(kind, vectors, weight, x.ctypes.data + 4 * b * padded, place, padded, padded, block)
            b += vectors
    begin = max(row[ACTIVE_FROM] - first, 0)
    end = min(row[ACTIVE_TO] - first, count)
    for b in range(batch):
        sums = y[b * block : b * block + count]
        if kind == INT8:
            scales = floats(row[SCALE] + 4 * first, count)
            for n in range(count):
                sums[n] *= scales[n]
        if row[BIAS]:
            biases = floats(row[BIAS] + 4 * first, count)
            for n in range(count):
                sums[n] += biases[n]
        if row[ACTIVATION] and begin < end:
            activate(sums[begin:end], row[ACTIVATION])
        out = floats(row[OUT] + 4 * (b * row[OUT_STRIDE] + first), count)
        if row[ADD]:
            for n in range(count):
                out[n] += sums[n]
        else:
            for n in range(count):
                out[n] = sums[n]


@kernel
def embed(row, factor, b, tokens):
    """EMBED: one row of the embedding for each token."""
    width = row[OUTPUTS]
    token = carray(pointer(tokens), (b + 1,), np.int64)[b]
    out = floats(row[OUT] + 4 * b * row[OUT_STRIDE], width)
    if row[KIND] == FLOAT32:
        weights = floats(row[WEIGHT] + 4 * token * width, width)
        for i in range(width):
            out[i] = weights[i] * factor
    else:
        halves = carray(pointer(row[WEIGHT] + 2 * token * width), (width,), np.uint16)
        for i in range(width):
            out[i] = as_float(i4(halves[i]) << i4(16)) * factor


@kernel
def turn(row, b, h, place, which, x, out):
    """Rotate q or k, and multiply by its factor: x of D_K into out."""
    width, heads = row[D_K], row[HEADS]
    pairs = width // 2 if row[TURNS] else 1
    at = ((b * row[PLACES] + place) * 2 + which) * heads + h
    cos = floats(row[COS] + 4 * at * pairs, pairs)
    if not row[TURNS]:
        for i in range(width):
            out[i] = x[i] * cos[0]
        return
    sin = floats(row[SIN] + 4 * at * pairs, pairs)
    if row[INTERLEAVED]:
        for i in range(pairs):
            first, second = x[2 * i], x[2 * i + 1]
            out[2 * i] = first * cos[i] - second * sin[i]
            out[2 * i + 1] = second * cos[i] + first * sin[i]
    else:
        for i in range(pairs):
            first, second = x[i], x[pairs + i]
            out[i] = first * cos[i] - second * sin[i]
            out[pairs + i] = second * cos[i] + first * sin[i]


@kernel
def retention(row, item, place, scratch):
    """RETENTION: a head of a row and a part of D_K; the buffer goes with the first part.

    o = sum over j <= place of decay^(place - j) (q k_j) v_j + decay^(place + 1) q S, for
    q and k turned and the k and v of this token put in the buffer.
    """
    heads, d_k, d_v, parts, places = row[HEADS], row[D_K], row[D_V], row[PARTS], row[PLACES]
    part, head = item % parts, item // parts
    b, h = head // heads, head % heads
    given = floats(row[IN] + 4 * b * row[IN_STRIDE], heads * (2 * d_k + d_v))
    q = scratch[:d_k]
    turn(row, b, h, place, 0, given[h * d_k : (h + 1) * d_k], q)
    powers = floats(row[DECAYS] + 4 * h * (places + 1), places + 1)
    out = floats(row[OUT] + 4 * (b * row[OUT_STRIDE] + (h * parts + part) * d_v), d_v)
    for j in range(d_v):
        out[j] = f4(0.0)
    if part == 0:
        keys = floats(row[KEYS] + 4 * head * places * d_k, places * d_k)
        values = floats(row[VALUES] + 4 * head * places * d_v, places * d_v)
        k_start, v_start = heads * d_k + h * d_k, 2 * heads * d_k + h * d_v
        k = keys[place * d_k : (place + 1) * d_k]
        turn(row, b, h, place, 1, given[k_start : k_start + d_k], k)
        values[place * d_v : (place + 1) * d_v] = given[v_start : v_start + d_v]
        for m in range(place + 1):
            score, k = f4(0.0), keys[m * d_k : (m + 1) * d_k]
            for i in range(d_k):
                score += q[i] * k[i]
            score *= powers[place - m]
            v = values[m * d_v : (m + 1) * d_v]
            for j in range(d_v):
                out[j] += score * v[j]
    begin, end = part * d_k // parts, (part + 1) * d_k // parts
    state = carray(pointer(row[S] + 4 * head * d_k * d_v), (d_k, d_v), np.float32)
    decay = powers[place + 1]
    i = begin
    while i + 4 <= end:
        q0, q1, q2, q3 = decay * q[i], decay * q[i + 1], decay * q[i + 2], decay * q[i + 3]
        s0, s1, s2, s3 = state[i], state[i + 1], state[i + 2], state[i + 3]
        for j in range(d_v):
            out[j] += q0 * s0[j] + q1 * s1[j] + q2 * s2[j] + q3 * s3[j]
        i += 4
    while i < end:
        q0, s0 = decay * q[i], state[i]
        for j in range(d_v):
            out[j] += q0 * s0[j]
        i += 1


@kernel
def claim(place, step, items):
    """The next item of an instruction that nobody has begun in this step, or -1."""
    base = step * items
    while True:
        begun = load_acquire(place)
        if begun >= base + items:
            return -1
        if exchange_if(place, begun, begun + 1):
            return begun - base


@kernel
def run_step(table, numbers, counters, job, step, scratch):
    """Do, with any other threads that come, all instructions of one step."""
    batch, place, tokens = job[B], job[PLACE], job[TOKENS]
    for p in range(len(table)):
        row, items = table[p], table[p, ITEMS]
        begun = counters.ctypes.data + 8 * LINE * (2 * p)
        done = begun + 8 * LINE
        ready = False
        while True:
            item = claim(begun, step, items)
            if item < 0:
                break
            if row[OP] == LINEAR:
                x = scratch[: batch * row[PADDED]]
                if not ready:
                    for b in range(batch):
                        read(row, numbers[p, EPS], b, x[b * row[PADDED] : (b + 1) * row[PADDED]])
                    ready = True
                linear(row, item, batch, x, scratch[batch * row[PADDED] :])
            elif row[OP] == RETENTION:
                retention(row, item, place, scratch)
            elif row[OP] == EMBED:
                embed(row, numbers[p, FACTOR], item, tokens)
            elif row[OP] == COPY:
                out = floats(row[OUT] + 4 * item * row[OUT_STRIDE], row[OUTPUTS])
                read(row, numbers[p, EPS], item, out)
            add_release(done, 1)
        while load_acquire(done) < (step + 1) * items:
            pass


@kernel
def lead(table, numbers, counters, job, scratch):
    """Begin the next step and do it."""
    step = job[STEP] + 1
    store_release(job.ctypes.data + 8 * STEP, step)
    run_step(table, numbers, counters, job, step, scratch)


@kernel
def help_on(table, numbers, counters, job, scratch, seen, patience):
    """Help with every step that begins, until none has begun for a while; returns the last."""
    address = job.ctypes.data + 8 * STEP
    add_release(job.ctypes.data + 8 * SPINS, 1)
    idle = 0
    while idle < patience:
        step = load_acquire(address)
        if step == seen:
            idle += 1
            continue
        run_step(table, numbers, counters, job, step, scratch)
        seen, idle = step, 0
    add_release(job.ctypes.data + 8 * SPINS, -1)
    return seen
