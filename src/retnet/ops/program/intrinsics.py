"""What the kernels need and Numba does not offer: addresses, atomic counters, vectors.

Memory order: a thread that has done an item adds to a counter with release order; one that finds
there what it waits for has read it with acquire order, and so sees what the item wrote.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from retnet.ops.program.table import LANES, ROWS

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
