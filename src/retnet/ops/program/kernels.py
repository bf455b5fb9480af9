"""The instructions of a program, compiled by Numba (README.md says how threads share them).

Addresses become arrays here and nowhere else. All numbers between instructions are float32.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# An intrinsic's first parameter is not given by who calls it.
from collections.abc import Callable
from hashlib import sha256
from inspect import unwrap
from math import erf, log1p
from pathlib import Path
from typing import Any

import numpy as np
from numba import carray, njit
from numba import float32 as f4
from numba import int16 as i2
from numba import int32 as i4

from retnet.ops.program.dots import dots_of
from retnet.ops.program.intrinsics import (
    add_release,
    as_bits,
    as_float,
    exchange_if,
    fold,
    load_acquire,
    pointer,
    store_release,
)
from retnet.ops.program.table import (
    ACTIVATION,
    ACTIVE_FROM,
    ACTIVE_TO,
    ADD,
    ATTENTION,
    BEGIN,
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
    EXP,
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
    KEYS_NEXT,
    KIND,
    KV_HEADS,
    LANES,
    LAST,
    LIMIT,
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
    PAST,
    PAST_NEXT,
    PLACES,
    RETENTION,
    RMS,
    ROWS,
    S_NEXT,
    SCALE,
    SHIFT,
    SIGMOID,
    SIN,
    SLOTS,
    SLOTS_NEXT,
    SQUARED_RELU,
    SWISH,
    TILE,
    TURNS,
    VALUES,
    VALUES_NEXT,
    WEIGHT,
    WIDTH,
    WKV,
    S,
)

LINE = 8
"""Numbers of a cache line: two counters on one would slow each other down."""

STEP, B, PLACE, TOKENS, SPINS, REST, THREADS = range(7)
"""Places of a job: the number of the step, rows, tokens in the buffers, the address of the new
ones' ids, how many helpers are looking here, whether they should sleep, and how many threads share
out the items."""

WIDE = 8
"""Vectors of the widest tile."""

MOST_OF_INT8, MOST_OF_INT16, MOST_OF_INT32 = (2 ** (bits - 1) - 1 for bits in (8, 16, 32))

NOTHING = 1e-30
"""Small enough to be zero, and large enough for one divided by it."""


def kernel(function: Callable[..., Any], *, cache: bool = False) -> Any:
    """Compile without the checks that tests put around functions.

    Sums may be made in any order; NaN and infinity stay what they are.
    """
    flags = {"reassoc", "contract", "nsz", "arcp"}
    return njit(unwrap(function), nogil=True, fastmath=flags, cache=cache, error_model="numpy")


def kept(function: Callable[..., Any]) -> Any:
    """Compile with all that it calls, and keep the result on disk where there is a place for it.

    Numba would keep it until this file changes; in its name, by which Numba finds it, is what all
    sources are.
    """
    function = unwrap(function)
    try:
        function.__qualname__ = f"{function.__name__}_{digest(Path(__file__).parent)}"
        return kernel(function, cache=True)
    except (OSError, RuntimeError):  # sources or places to write to are missing
        return kernel(function)


def digest(folder: Path) -> str:
    """What the sources of a kernel are, in short."""
    sources = (folder / name for name in ("dots.py", "intrinsics.py", "kernels.py", "table.py"))
    return sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


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
def sigmoid(x):
    """`1 / (1 + e^-x)`; NaN of NaN, which `exp` does not see."""
    return f4(1.0) / (f4(1.0) + exp(-x)) if x == x else x


@kernel
def activate(y, kind, limit):
    """Apply an activation in place; the limit is of EXP's argument. NaN stays NaN."""
    if kind == SWISH:
        for i in range(len(y)):
            y[i] = y[i] / (f4(1.0) + exp(-y[i]))
    elif kind == GELU:
        for i in range(len(y)):
            y[i] = f4(0.5) * y[i] * f4(1.0 + erf(y[i] * 0.7071067811865476))
    elif kind == SIGMOID:
        for i in range(len(y)):
            y[i] = sigmoid(y[i])
    elif kind == SQUARED_RELU:
        for i in range(len(y)):
            y[i] = max(y[i], f4(0.0)) * y[i]
    elif kind == EXP:
        for i in range(len(y)):
            y[i] = exp(min(max(y[i], -limit), limit)) if y[i] == y[i] else y[i]
    else:
        for i in range(len(y)):
            y[i] = max(y[i], f4(0.0))


@kernel
def normalize(y, norm, eps, weight, bias):
    """Normalise numbers in place; weight and bias may be empty."""
    n = len(y)
    if norm == LAST:
        scale = f4(1.0) / y[n - 1]
        for i in range(n):
            y[i] *= scale
        return
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
    """What COPY, SHIFT and LINEAR read of batch row b, into y: norm(x) * gate."""
    width, group, known = row[WIDTH], row[GROUP], row[NORM_WEIGHTS]
    x = floats(row[IN] + 4 * b * row[IN_STRIDE], width)
    for i in range(width):
        y[i] = x[i]
    if row[NORM]:
        weights = floats(row[NORM_WEIGHT], known)
        biases = floats(row[NORM_BIAS], known if row[NORM_BIAS] else 0)
        for start in range(0, width, group):
            normalize(y[start : start + group], row[NORM], eps, weights, biases)
    if row[GATE]:
        gate = floats(row[GATE] + 4 * b * row[GATE_STRIDE], width)
        for i in range(width):
            y[i] *= gate[i]
    for i in range(width, len(y)):
        y[i] = f4(0.0)


@kernel
def shorten(x, out):
    """Whole numbers of 16 bits, and the factor that makes x of them again, to within half of it.

    The sum of a LANES-th of their products with weights of 8 bits fits 32 bits. Among numbers
    none of which is larger than NOTHING all are zero; NaN and infinity make the factor NaN.
    """
    most, odd = f4(0.0), f4(0.0)
    for i in range(len(x)):
        most = max(most, abs(x[i]))
        odd += x[i] * f4(0.0)
    largest = f4(min(MOST_OF_INT16, MOST_OF_INT32 * LANES // (MOST_OF_INT8 * len(x))))
    known = odd == f4(0.0) and most > f4(NOTHING)
    scale = largest / most if known else f4(0.0)
    for i in range(len(x)):
        out[i] = i2(np.floor(x[i] * scale + f4(0.5))) if known else i2(0)
    return most / largest + odd


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
            _i8(weight + 64, x, out + 8, K, x_stride, out_stride)
    elif kind == BFLOAT16:
        if vectors == 1:
            _b1(weight, x, out, K, x_stride, out_stride)
        elif vectors == 2:
            _b2(weight, x, out, K, x_stride, out_stride)
        elif vectors == 4:
            _b4(weight, x, out, K, x_stride, out_stride)
        else:
            _b8(weight, x, out, K, x_stride, out_stride)
            _b8(weight + 64, x, out + 8, K, x_stride, out_stride)
    elif vectors == 1:
        _f1(weight, x, out, K, x_stride, out_stride)
    elif vectors == 2:
        _f2(weight, x, out, K, x_stride, out_stride)
    elif vectors == 4:
        _f4(weight, x, out, K, x_stride, out_stride)
    else:
        _f8(weight, x, out, K, x_stride, out_stride)
        _f8(weight + 128, x, out + 8, K, x_stride, out_stride)


@kernel
def prepare(row, eps, batch, scratch):
    """Put what LINEAR reads into the scratch: batch PADDED numbers.

    For INT8 the same in 16 bits comes after them, and then a factor for each row of the batch.
    """
    padded, kind = row[PADDED], row[KIND]
    size = batch * padded
    for b in range(batch):
        read(row, eps, b, scratch[b * padded : (b + 1) * padded])
    if kind == INT8:
        shorts = carray(pointer(scratch.ctypes.data + 4 * size), (size,), np.int16)
        factors = scratch[size + size // 2 : size + size // 2 + batch]
        for b in range(batch):
            here = slice(b * padded, (b + 1) * padded)
            factors[b] = shorten(scratch[here], shorts[here])


@kernel
def linear(row, limit, item, batch, scratch):
    """LINEAR: a block of outputs of all rows of the batch, whose x are prepared in the scratch."""
    padded, block, kind = row[PADDED], row[BLOCK], row[KIND]
    size = 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1
    numbers = batch * padded
    x, x_size = scratch.ctypes.data, 4
    factors, y = scratch[:0], scratch[numbers:]
    if kind == INT8:
        x, x_size = x + 4 * numbers, 2
        after = numbers + numbers // 2
        factors, y = scratch[after : after + batch], scratch[after + batch :]
    first = item * block
    count = min(block, row[OUTPUTS] - first)
    for r in range(0, count, ROWS):  # WEIGHT has whole tiles
        weight = row[WEIGHT] + (first + r) * padded * size
        b = 0
        while b < batch:
            left = batch - b
            vectors = WIDE if left >= WIDE else 4 if left >= 4 else 2 if left >= 2 else 1
            place = y.ctypes.data + 4 * (b * block + r)
            tile(kind, vectors, weight, x + x_size * b * padded, place, padded, padded, block)
            b += vectors
    begin = max(row[ACTIVE_FROM] - first, 0)
    end = min(row[ACTIVE_TO] - first, count)
    for b in range(batch):
        sums = y[b * block : b * block + count]
        if kind == INT8:
            scales = floats(row[SCALE] + 4 * first, count)
            for n in range(count):
                sums[n] *= scales[n] * factors[b]
        if row[BIAS]:
            biases = floats(row[BIAS] + 4 * first, count)
            for n in range(count):
                sums[n] += biases[n]
        if row[ACTIVATION] and begin < end:
            activate(sums[begin:end], row[ACTIVATION], limit)
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
def copy(row, eps, b, x):
    """COPY; x: scratch."""
    read(row, eps, b, x)
    out = floats(row[OUT] + 4 * b * row[OUT_STRIDE], row[OUTPUTS])
    for i in range(row[OUTPUTS]):
        out[i] = x[i] + (out[i] if row[ADD] else f4(0.0))


@kernel
def shift(row, eps, b, place, y):
    """SHIFT: a token mixed with the one before it, and kept for the one after; y: scratch."""
    width, places = row[WIDTH], row[PLACES]
    read(row, eps, b, y)
    row_size = (places + 1) * width
    past = floats(row[PAST] + 4 * b * row_size, row_size)
    before = past[place * width : (place + 1) * width]
    past[(place + 1) * width : (place + 2) * width] = y
    if place == places - 1:
        floats(row[PAST_NEXT] + 4 * b * row_size, width)[:] = y
    mixes = floats(row[WEIGHT], row[OUTPUTS])
    out = floats(row[OUT] + 4 * b * row[OUT_STRIDE], row[OUTPUTS])
    for start in range(0, row[OUTPUTS], width):
        for i in range(width):
            out[start + i] = before[i] + mixes[start + i] * (y[i] - before[i])


@kernel
def wkv(row, b, place):
    """WKV: an average of values, each channel's own; `retnet.ops.wkv` has the names."""
    width, places = row[WIDTH], row[PLACES]
    given = floats(row[IN] + 4 * b * row[IN_STRIDE], 2 * width)
    constants = floats(row[WEIGHT], 2 * width)
    row_size = (places + 1) * 2 * width
    past = floats(row[PAST] + 4 * b * row_size, row_size)
    before = past[place * 2 * width : (place + 1) * 2 * width]
    after = past[(place + 1) * 2 * width : (place + 2) * 2 * width]
    out = floats(row[OUT] + 4 * b * row[OUT_STRIDE], width)
    for i in range(width):
        k, mean = given[i], before[i]
        rise = given[width + i] - mean
        odds = constants[i] - k + before[width + i]
        out[i] = mean + sigmoid(constants[width + i] - odds) * rise
        after[i] = mean + sigmoid(-odds) * rise
        after[width + i] = max(odds, f4(0.0)) + f4(log1p(exp(-abs(odds)))) + k
    if place == places - 1:
        floats(row[PAST_NEXT] + 4 * b * row_size, 2 * width)[:] = after


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
    rotate(x, cos, floats(row[SIN] + 4 * at * pairs, pairs), row[INTERLEAVED], out)


@kernel
def rotate(x, cos, sin, interleaved, out):
    """Turn each pair (a, b) into (a cos - b sin, b cos + a sin)."""
    pairs = len(cos)
    if interleaved:
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
    """RETENTION: a part of D_v of a head of a row.

    o = sum over m <= place of decay^(place - m) (q k_m) v_m + decay^(place + 1) q S, for q and k
    turned and the k and v of this token put in the buffer.
    """
    heads, d_k, d_v, parts, places = row[HEADS], row[D_K], row[D_V], row[PARTS], row[PLACES]
    padded, v_stride = padded_to(d_k, LANES), padded_to(d_v, ROWS)
    part, head = item % parts, item // parts
    b, h = head // heads, head % heads
    tiles = v_stride // ROWS
    begin, end = part * tiles // parts * ROWS, (part + 1) * tiles // parts * ROWS
    given = floats(row[IN] + 4 * b * row[IN_STRIDE], heads * (2 * d_k + d_v))
    powers = floats(row[DECAYS] + 4 * h * (places + 1), places + 1)
    keys = floats(row[KEYS] + 4 * head * places * padded, places * padded)
    values = floats(row[VALUES] + 4 * head * places * v_stride, places * v_stride)
    # the other parts have no time to wait for the one that writes k, so all make it
    q, k = scratch[:padded], scratch[padded : 2 * padded]
    q[d_k:], k[d_k:] = f4(0.0), f4(0.0)
    turn(row, b, h, place, 0, given[h * d_k : (h + 1) * d_k], q)
    turn(row, b, h, place, 1, given[(heads + h) * d_k : (heads + h + 1) * d_k], k)
    if part == 0:
        keys[place * padded : (place + 1) * padded] = k
    v = given[2 * heads * d_k + h * d_v : 2 * heads * d_k + (h + 1) * d_v]
    for j in range(begin, end):
        values[place * v_stride + j] = v[j] if j < d_v else f4(0.0)
    y = scratch[2 * padded : 2 * padded + end - begin]
    scores = scratch[2 * padded + v_stride :]
    for m in range(place + 1):
        past, score = (k if m == place else keys[m * padded : (m + 1) * padded]), f4(0.0)
        for i in range(padded):
            score += q[i] * past[i]
        scores[m] = score * powers[place - m]
    for i in range(padded):
        q[i] *= powers[place + 1]
    state = row[S] + 4 * padded * (head * v_stride + begin)
    for j in range(0, end - begin, ROWS):
        out = y.ctypes.data + 4 * j
        _f1(state + 4 * j * padded, q.ctypes.data, out, padded, padded, ROWS)
    for m in range(place + 1):
        score, past = scores[m], values[m * v_stride + begin : m * v_stride + end]
        for j in range(end - begin):
            y[j] += score * past[j]
    o = floats(row[OUT] + 4 * (b * row[OUT_STRIDE] + h * d_v), d_v)
    for j in range(begin, min(end, d_v)):
        o[j] = y[j - begin]
    if place == places - 1:
        after = row[S_NEXT] + 4 * padded * (head * v_stride + begin)
        all_keys = scratch[2 * padded + v_stride + places :]
        all_keys[: place * padded] = keys[: place * padded]
        all_keys[place * padded : places * padded] = k
        past = values.reshape((places, v_stride))[:, begin:end]
        settle(row, powers, state, after, all_keys, past, all_keys[places * padded :])


@kernel
def settle(row, powers, old, new, keys, values, scratch):
    """S^T = decay^places S^T + sum of decay^(places - 1 - m) v_m k_m^T, for some rows of D_v.

    values: places, rows; their width is what lies between them.
    """
    places, padded = row[PLACES], padded_to(row[D_K], LANES)
    weights = scratch[: (places + 1) * ROWS]
    weights[places * ROWS] = powers[places]
    for j in range(0, values.shape[1], ROWS):
        for m in range(places):
            for r in range(ROWS):
                weights[m * ROWS + r] = powers[places - 1 - m] * values[m, j + r]
        skip = 4 * j * padded
        address = weights.ctypes.data
        fold(old + skip, new + skip, keys.ctypes.data, address, padded // LANES, places)


@kernel
def attention(row, scale, item, place, scratch):
    """ATTENTION: a head of keys of a row, for all queries that share it.

    Softmax over a tile of keys after the other; before each, what there is shrinks as the largest
    score rises.
    """
    D, places, kind = row[D_K], row[PLACES], row[KIND]
    shared, group = row[KV_HEADS], row[HEADS] // row[KV_HEADS]
    b, h = item // shared, item % shared
    slot = carray(pointer(row[BEGIN]), (b + 1,), np.int64)[b] + place
    given = floats(row[IN] + 4 * b * row[IN_STRIDE], (row[HEADS] + 2 * shared) * D)
    queries = given[h * group * D : (h + 1) * group * D]
    key = given[(row[HEADS] + h) * D : (row[HEADS] + h + 1) * D]
    value = given[(row[HEADS] + shared + h) * D : (row[HEADS] + shared + h + 1) * D]
    q, sums = scratch[: group * D], scratch[group * D : 2 * group * D]
    k, numbers = scratch[2 * group * D : (2 * group + 1) * D], scratch[(2 * group + 1) * D :]
    weights = numbers[TILE * D : (D + group) * TILE].reshape((group, TILE))
    largest = numbers[(D + group) * TILE : (D + group) * TILE + group]
    total = numbers[(D + group) * TILE + group : (D + group) * TILE + 2 * group]
    if row[TURNS]:
        pairs = D // 2
        cos = floats(row[COS] + 4 * (b * places + place) * pairs, pairs)
        sin = floats(row[SIN] + 4 * (b * places + place) * pairs, pairs)
        for g in range(group):
            rotate(queries[g * D : (g + 1) * D], cos, sin, row[INTERLEAVED], q[g * D : (g + 1) * D])
        rotate(key, cos, sin, row[INTERLEAVED], k)
    else:
        q[:], k[:] = queries, key
    for i in range(group * D):
        q[i] *= scale
    sums[:], largest[:], total[:] = f4(0.0), f4(-3e38), f4(0.0)
    head, size = item * row[SLOTS], 2 if kind == BFLOAT16 else 4
    keep(row[KEYS] + size * (head + slot) * D, kind, k)
    keep(row[VALUES] + size * (head + slot) * D, kind, value)
    if place == places - 1:
        after = size * (item * row[SLOTS_NEXT] + slot) * D
        keep(row[KEYS_NEXT] + after, kind, k)
        keep(row[VALUES_NEXT] + after, kind, value)
    for start in range(0, slot + 1, TILE):
        count = min(TILE, slot + 1 - start)
        keys = kept_numbers(row[KEYS] + size * (head + start) * D, kind, count * D, numbers)
        for g in range(group):
            weigh(q[g * D : (g + 1) * D], keys, weights[g, :count])
            scores, most, sum_ = weights[g, :count], largest[g], f4(0.0)
            for t in range(count):
                most = max(most, scores[t])
            shrink = exp(largest[g] - most)
            for t in range(count):
                scores[t] = exp(scores[t] - most) if scores[t] == scores[t] else scores[t]
                sum_ += scores[t]
            largest[g], total[g] = most, total[g] * shrink + sum_
            own = sums[g * D : (g + 1) * D]
            for i in range(D):
                own[i] *= shrink
        values = kept_numbers(row[VALUES] + size * (head + start) * D, kind, count * D, numbers)
        for g in range(group):
            add_weighed(weights[g, :count], values, sums[g * D : (g + 1) * D])
    o = floats(row[OUT] + 4 * (b * row[OUT_STRIDE] + h * group * D), group * D)
    for g in range(group):
        for i in range(g * D, (g + 1) * D):
            o[i] = sums[i] / total[g]


@kernel
def keep(address, kind, x):
    """Write numbers to a cache; of bfloat16, the nearest."""
    if kind == FLOAT32:
        floats(address, len(x))[:] = x
        return
    halves = carray(pointer(address), (len(x),), np.uint16)
    for i in range(len(x)):
        bits = as_bits(x[i])
        rounded = bits + i4(0x7FFF) + ((bits >> i4(16)) & i4(1))
        halves[i] = np.uint16((rounded if x[i] == x[i] else bits | i4(0x400000)) >> i4(16))


@kernel
def kept_numbers(address, kind, size, scratch):
    """Numbers of a cache, where they are or as float32 in scratch."""
    if kind == FLOAT32:
        return floats(address, size)
    halves = carray(pointer(address), (size,), np.uint16)
    for i in range(size):
        scratch[i] = as_float(i4(halves[i]) << i4(16))
    return scratch[:size]


@kernel
def weigh(q, keys, out):
    """The product of q with each key, four at a time: they share the reading of q."""
    D, count = len(q), len(out)
    whole = count - count % 4
    for t in range(0, whole, 4):
        # indices of one variable: with sums of two the compiler makes no vectors
        k0, k1, k2, k3 = rows_of(keys, t, D)
        a, b, c, d = f4(0.0), f4(0.0), f4(0.0), f4(0.0)
        for i in range(D):
            a += q[i] * k0[i]
            b += q[i] * k1[i]
            c += q[i] * k2[i]
            d += q[i] * k3[i]
        out[t], out[t + 1], out[t + 2], out[t + 3] = a, b, c, d
    for t in range(whole, count):
        k0, a = keys[t * D : (t + 1) * D], f4(0.0)
        for i in range(D):
            a += q[i] * k0[i]
        out[t] = a


@kernel
def add_weighed(weights, values, sums):
    """Add each value times its weight, four at a time: they share the reading of the sums."""
    D, count = len(sums), len(weights)
    whole = count - count % 4
    for t in range(0, whole, 4):
        v0, v1, v2, v3 = rows_of(values, t, D)
        a, b, c, d = weights[t], weights[t + 1], weights[t + 2], weights[t + 3]
        for i in range(D):
            sums[i] += (a * v0[i] + b * v1[i]) + (c * v2[i] + d * v3[i])
    for t in range(whole, count):
        v0, a = values[t * D : (t + 1) * D], weights[t]
        for i in range(D):
            sums[i] += a * v0[i]


@kernel
def rows_of(matrix, first, width):
    """Four rows of it."""
    at = first * width
    return (
        matrix[at : at + width],
        matrix[at + width : at + 2 * width],
        matrix[at + 2 * width : at + 3 * width],
        matrix[at + 3 * width : at + 4 * width],
    )


@kernel
def padded_to(size, multiple):
    """The next multiple."""
    return (size + multiple - 1) // multiple * multiple


@kernel
def claim(begun, step, items, threads, who):
    """The next item of an instruction that nobody has begun in this step, or -1.

    Of the items of thread `who` first, then of the others'.
    """
    for other in range(threads):
        owner = (who + other) % threads
        first = owner * items // threads
        own = (owner + 1) * items // threads - first
        place, base = begun + 8 * LINE * owner, step * own
        while True:
            number = load_acquire(place)
            if number >= base + own:
                break
            if exchange_if(place, number, number + 1):
                return first + number - base
    return -1


@kernel
def run_step(table, numbers, counters, job, step, scratch, who):
    """Do, with any other threads that come, all instructions of one step."""
    batch, place, tokens, threads = job[B], job[PLACE], job[TOKENS], job[THREADS]
    for p in range(len(table)):
        row, items = table[p], table[p, ITEMS]
        done = counters.ctypes.data + 8 * LINE * (threads + 1) * p
        begun = done + 8 * LINE
        ready = False
        while True:
            item = claim(begun, step, items, threads, who)
            if item < 0:
                break
            if row[OP] == LINEAR:
                if not ready:
                    prepare(row, numbers[p, EPS], batch, scratch)
                    ready = True
                linear(row, numbers[p, LIMIT], item, batch, scratch)
            elif row[OP] == RETENTION:
                retention(row, item, place, scratch)
            elif row[OP] == SHIFT:
                shift(row, numbers[p, EPS], item, place, scratch[: row[WIDTH]])
            elif row[OP] == EMBED:
                embed(row, numbers[p, FACTOR], item, tokens)
            elif row[OP] == ATTENTION:
                attention(row, numbers[p, FACTOR], item, place, scratch)
            elif row[OP] == WKV:
                wkv(row, item, place)
            elif row[OP] == COPY:
                copy(row, numbers[p, EPS], item, scratch[: row[OUTPUTS]])
            add_release(done, 1)
        while load_acquire(done) < (step + 1) * items:
            pass


@kept
def take_part(table, numbers, counters, job, scratch, seen, patience, who):
    """Begin the next step and do it; or help with every step that others begin.

    One function for both, because it is compiled with all that it calls.

    Args:
        seen: the last step that this thread knows of.
        patience: how often to look for another step before going; 0 for who begins them.
        who: whose items come first, of THREADS.

    Returns:
        The last step that this thread took part in.
    """
    newest, helpers = job.ctypes.data + 8 * STEP, job.ctypes.data + 8 * SPINS
    rest = job.ctypes.data + 8 * REST
    leads, idle = patience == 0, 0
    if leads:
        store_release(newest, seen + 1)
    else:
        add_release(helpers, 1)
    while leads or idle < patience:
        step = load_acquire(newest)
        if step == seen:
            idle = patience if load_acquire(rest) else idle + 1
            continue
        run_step(table, numbers, counters, job, step, scratch, who)
        seen, idle = step, 0
        if leads:
            return seen
    add_release(helpers, -1)
    return seen
