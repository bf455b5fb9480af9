"""What the kernels need and Numba does not offer: addresses, atomic counters, dot products.

Memory order: a thread that has done an item adds to a counter with release order; one that finds
there what it waits for has read it with acquire order, and so sees what the item wrote.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from retnet.ops.program.table import LANES

_i64, _f32 = ir.IntType(64), ir.FloatType()
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


def dots_of(kind: str, rows: int, vectors: int) -> Any:
    """Make the function `dots(weight, x, out, K, x_stride, out_stride)`.

    Out of it comes the float32 product of each of `rows` weight rows, K numbers of a kind apiece,
    with each of `vectors` float32 vectors: `out[vector * out_stride + row]`. K is a multiple of
    LANES; strides are numbers. Every sum is made in the same order, whatever the tile.

    Args:
        kind: float32, bfloat16 or int8.
        rows: weight rows of a tile.
        vectors: x of a tile.
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

    def at(builder: Any, base: Any, index: Any, bytes_each: int, of: Any) -> Any:
        place = builder.add(base, builder.mul(index, ir.Constant(_i64, bytes_each)))
        return builder.inttoptr(place, of.as_pointer())

    @intrinsic
    def dots(  # noqa: PLR0913
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
                for r in range(rows):
                    index = builder.add(k, builder.mul(K, ir.Constant(_i64, r)))
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
