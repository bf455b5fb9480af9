"""What the kernels need and Numba does not offer: addresses, atomic counters, dot products.

Memory order: a thread that has done an item adds to a counter with release order; one that finds
there what it waits for has read it with acquire order, and so sees what the item wrote.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from retnet.ops.program.table import LANES, ROWS

AHEAD = 1024
"""Bytes."""

_i64, _i32, _f32 = ir.IntType(64), ir.IntType(32), ir.FloatType()
_floats = ir.VectorType(_f32, LANES)
_words = ir.VectorType(ir.IntType(32), LANES)


@intrinsic
def pointer(_typing: Any, address: Any) -> Any:
    """An address as what `carray` takes."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


@intrinsic
def load_acquire(_typing: Any, address: Any) -> Any:
    """The number at an address, before anything that is read later."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], _i64.as_pointer()), "acquire", 8)

    return types.int64(types.intp), generate


@intrinsic
def store_release(_typing: Any, address: Any, value: Any) -> Any:
    """Write a number after everything that was written before."""

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _i64.as_pointer())
        builder.store_atomic(args[1], place, "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.int64), generate


@intrinsic
def add_release(_typing: Any, address: Any, value: Any) -> Any:
    """Add to the number at an address, and return what was there."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _i64.as_pointer())
        return builder.atomic_rmw("add", place, args[1], "acq_rel")

    return types.int64(types.intp, types.int64), generate


@intrinsic
def exchange_if(_typing: Any, address: Any, old: Any, new: Any) -> Any:
    """Put `new` at an address if `old` is there; say whether."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _i64.as_pointer())
        return builder.extract_value(
            builder.cmpxchg(place, args[1], args[2], "acq_rel", "acquire"), 1
        )

    return types.boolean(types.intp, types.int64, types.int64), generate


@intrinsic
def as_float(_typing: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _f32)

    return types.float32(types.int32), generate


@intrinsic
def as_bits(_typing: Any, x: Any) -> Any:
    """The 32 bits of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _i32)

    return types.int32(types.float32), generate


def dots_of(kind: str, rows: int, vectors: int) -> Any:
    """Make the function `dots(weight, x, out, K, x_stride, out_stride)`.

    Out of it comes the float32 product of each of `rows` weight rows, K numbers of a kind apiece,
    with each of `vectors` float32 vectors: `out[vector * out_stride + row]`. K is a multiple of
    LANES; strides are numbers. Every sum is made in the same order, whatever the tile.

    The weights lie in tiles of ROWS rows: LANES numbers of each in turn, then the next of each.
    So one stream of memory is read, and what is AHEAD in it is fetched meanwhile.

    Args:
        kind: float32, bfloat16 or int8.
        rows: weight rows that are multiplied, of a tile's ROWS; `weight` is where the first begins.
        vectors: how many x.
    """
    element, size = {
        "float32": (_f32, 4),
        "bfloat16": (ir.IntType(16), 2),
        "int8": (ir.IntType(8), 1),
    }[kind]
    weights = ir.VectorType(element, LANES)

    def widen(builder: Any, w: Any) -> Any:
        if kind == "int8":
            return builder.sitofp(w, _floats)
        if kind == "bfloat16":  # it is the upper half of a float32
            upper = builder.shl(builder.zext(w, _words), ir.Constant(_words, [16] * LANES))
            return builder.bitcast(upper, _floats)
        return w

    def fetch(builder: Any, address: Any) -> None:
        i32, place = ir.IntType(32), builder.inttoptr(address, cgutils.voidptr_t)
        kinds = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, i32, i32, i32])
        prefetch = cgutils.get_or_insert_function(builder.module, kinds, "llvm.prefetch.p0")
        # to read data, into the nearest cache; past the others (0, 0, 1) it takes twice the time
        builder.call(prefetch, [place, *(ir.Constant(i32, n) for n in (0, 3, 1))])

    def at(builder: Any, base: Any, index: Any, bytes_each: int, of: Any) -> Any:
        place = builder.add(base, builder.mul(index, ir.Constant(_i64, bytes_each)))
        return builder.inttoptr(place, of.as_pointer())

    @intrinsic
    def dots(
        _typing: Any, weight: Any, x: Any, out: Any, K: Any, x_stride: Any, out_stride: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            weight, x, out, K, x_stride, out_stride = args
            zero = ir.Constant(_floats, None)
            tile = [(r, v) for r in range(rows) for v in range(vectors)]
            sums = {place: cgutils.alloca_once_value(builder, zero) for place in tile}
            fma = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_floats, [_floats] * 3), f"llvm.fma.v{LANES}f32"
            )
            add_up = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(_f32, [_f32, _floats]),
                f"llvm.vector.reduce.fadd.v{LANES}f32",
            )
            with cgutils.for_range(builder, builder.sdiv(K, ir.Constant(_i64, LANES))) as loop:
                k = builder.mul(loop.index, ir.Constant(_i64, LANES))
                several = []
                for v in range(vectors):
                    index = builder.add(k, builder.mul(x_stride, ir.Constant(_i64, v)))
                    several.append(builder.load(at(builder, x, index, 4, _floats), align=4))
                line = builder.mul(k, ir.Constant(_i64, ROWS * size))
                for start in range(0, rows * LANES * size, 64):
                    ahead = builder.add(line, ir.Constant(_i64, start + AHEAD))
                    fetch(builder, builder.add(weight, ahead))
                for r in range(rows):
                    index = builder.add(
                        builder.mul(k, ir.Constant(_i64, ROWS)), ir.Constant(_i64, r * LANES)
                    )
                    w = builder.load(at(builder, weight, index, size, weights), align=size)
                    w = widen(builder, w)
                    for v in range(vectors):
                        place = sums[r, v]
                        total = builder.call(fma, [w, several[v], builder.load(place)])
                        builder.store(total, place)
            for r, v in tile:
                start = ir.Constant(_f32, 0.0)
                # in any order: it is the same for every tile
                total = builder.call(add_up, [start, builder.load(sums[r, v])], fastmath="reassoc")
                index = builder.add(
                    ir.Constant(_i64, r), builder.mul(out_stride, ir.Constant(_i64, v))
                )
                builder.store(total, at(builder, out, index, 4, _f32))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return dots


@intrinsic
def fold(
    _typing: Any, old: Any, new: Any, keys: Any, weights: Any, pieces: Any, places: Any
) -> Any:
    """Write `new = decay * old + sum over m of weight_m k_m` for a tile of ROWS rows of S^T.

    Args:
        old: a tile of `pieces` times ROWS times LANES numbers.
        new: likewise.
        keys: `places` rows of `pieces` times LANES numbers.
        weights: of each key ROWS numbers, and then the decay.
        pieces: of a row.
        places: how many keys.
    """

    def at(builder: Any, base: Any, index: Any, of: Any) -> Any:
        place = builder.add(base, builder.mul(index, ir.Constant(_i64, 4)))
        return builder.inttoptr(place, of.as_pointer())

    def spread(builder: Any, base: Any, index: Any) -> Any:
        number = builder.load(at(builder, base, index, _f32), align=4)
        one = builder.insert_element(ir.Constant(_floats, ir.Undefined), number, ir.IntType(32)(0))
        return builder.shuffle_vector(one, one, ir.Constant(_words, [0] * LANES))

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        old, new, keys, weights, pieces, places = args
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_floats, [_floats] * 3), f"llvm.fma.v{LANES}f32"
        )
        sums = [cgutils.alloca_once(builder, _floats) for _ in range(ROWS)]
        decay = spread(builder, weights, builder.mul(places, ir.Constant(_i64, ROWS)))
        with cgutils.for_range(builder, pieces) as piece:
            tile = builder.mul(piece.index, ir.Constant(_i64, ROWS * LANES))
            places_of = [builder.add(tile, ir.Constant(_i64, r * LANES)) for r in range(ROWS)]
            for r in range(ROWS):
                row = builder.load(at(builder, old, places_of[r], _floats), align=4)
                builder.store(builder.fmul(row, decay), sums[r])
            with cgutils.for_range(builder, places) as m:
                start = builder.mul(m.index, builder.mul(pieces, ir.Constant(_i64, LANES)))
                lane = builder.add(start, builder.mul(piece.index, ir.Constant(_i64, LANES)))
                key = builder.load(at(builder, keys, lane, _floats), align=4)
                weight = builder.mul(m.index, ir.Constant(_i64, ROWS))
                for r in range(ROWS):
                    by = spread(builder, weights, builder.add(weight, ir.Constant(_i64, r)))
                    builder.store(builder.call(fma, [by, key, builder.load(sums[r])]), sums[r])
            for r in range(ROWS):
                place = at(builder, new, places_of[r], _floats)
                builder.store(builder.load(sums[r]), place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 6), generate
