"""Dot products of weight rows with vectors, as a processor makes them.

Weights of float32 and bfloat16 meet vectors of float32, in sums of float32. Weights of 8 bits meet
vectors of 16 bits, in whole numbers: processors multiply and add up pairs of those at once, in a
half to a third of the time that it takes to make floats of 8 bits, and no sum is rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from retnet.ops.program.table import LANES, LANES_OF_INT8, ROWS

AHEAD = 1024
"""Bytes."""

PAIRS = (
    ("+avx512bw", "llvm.x86.avx512.pmaddw.d.512", 32),
    ("+avx2", "llvm.x86.avx2.pmadd.wd", 16),
    ("+sse2", "llvm.x86.sse2.pmadd.wd", 8),
)
"""What multiplies numbers of 16 bits and adds neighbours: the feature that a processor must have,
its name, how many numbers."""

_i64, _i32, _i16, _i8 = (ir.IntType(bits) for bits in (64, 32, 16, 8))
_f32 = ir.FloatType()
_floats = ir.VectorType(_f32, LANES)
_words = ir.VectorType(_i32, LANES)
_shorts = ir.VectorType(_i16, LANES_OF_INT8)


@dataclass(frozen=True)
class Kind:
    """How weights of one kind are multiplied.

    Attributes:
        weights: of a row, that are read at a time.
        vector: the numbers that they meet.
        sums: what is added up.
        add: `add(builder, features, weights, vector, sums)`, their product added to the sums.
    """

    weights: Any
    vector: Any
    sums: Any
    add: Callable[[Any, str, Any, Any, Any], Any]


def _add_floats(builder: Any, _features: str, w: Any, x: Any, sums: Any) -> Any:
    kind = ir.FunctionType(_floats, [_floats] * 3)
    fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{LANES}f32")
    return builder.call(fma, [w, x, sums])


def _add_bfloat16(builder: Any, features: str, w: Any, x: Any, sums: Any) -> Any:
    """They are the upper halves of float32."""
    upper = builder.shl(builder.zext(w, _words), ir.Constant(_words, [16] * LANES))
    return _add_floats(builder, features, builder.bitcast(upper, _floats), x, sums)


def _add_int8(builder: Any, features: str, w: Any, x: Any, sums: Any) -> Any:
    return builder.add(sums, add_pairs(builder, features, builder.sext(w, _shorts), x))


def add_pairs(builder: Any, features: str, a: Any, b: Any) -> Any:
    """Products of vectors of 16 bits, added up in twos: which twos depends on the processor."""
    lanes = a.type.count
    into = ir.VectorType(_i32, lanes // 2)
    for feature, name, widest in PAIRS:
        if feature not in features.split(","):
            continue
        if lanes > widest:
            halves = [
                add_pairs(builder, features, _half(builder, a, n), _half(builder, b, n))
                for n in (0, 1)
            ]
            return builder.shuffle_vector(*halves, _places(0, lanes // 2))
        kind = ir.FunctionType(into, [a.type] * 2)
        multiply = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(multiply, [a, b])
    products = [
        builder.mul(*(builder.sext(_half(builder, x, n), into) for x in (a, b))) for n in (0, 1)
    ]
    return builder.add(*products)


def _half(builder: Any, vector: Any, which: int) -> Any:
    size = vector.type.count // 2
    return builder.shuffle_vector(vector, vector, _places(which * size, size))


def _places(start: int, count: int) -> Any:
    return ir.Constant(ir.VectorType(_i32, count), list(range(start, start + count)))


KINDS = {
    "float32": Kind(_floats, _floats, _floats, _add_floats),
    "bfloat16": Kind(ir.VectorType(_i16, LANES), _floats, _floats, _add_bfloat16),
    "int8": Kind(ir.VectorType(_i8, LANES_OF_INT8), _shorts, _words, _add_int8),
}


def dots_of(kind: str, rows: int, vectors: int) -> Any:
    """Make the function `dots(weight, x, out, K, x_stride, out_stride)`.

    Out of it comes the product of each of `rows` weight rows, K numbers of a kind apiece, with
    each of `vectors` vectors, in float32: `out[vector * out_stride + row]`. K is a multiple of
    LANES, or of LANES_OF_INT8; strides are numbers. Every sum is made in the same order, whatever
    the tile.

    The weights lie in tiles of ROWS rows: so many numbers of each in turn, then the next of each.
    So one stream of memory is read, and what is AHEAD in it is fetched meanwhile.

    Args:
        kind: float32, bfloat16 or int8; of int8, x is int16 and must be small enough that sums of
            a LANES-th of the products fit 32 bits.
        rows: weight rows that are multiplied, of a tile's ROWS; `weight` is where the first begins.
        vectors: how many x.
    """
    of = KINDS[kind]
    lanes, size, x_size = of.weights.count, _bytes(of.weights), _bytes(of.vector)

    def fetch(builder: Any, address: Any) -> None:
        place = builder.inttoptr(address, cgutils.voidptr_t)
        kinds = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _i32, _i32, _i32])
        prefetch = cgutils.get_or_insert_function(builder.module, kinds, "llvm.prefetch.p0")
        # to read data, into the second cache (docs/log.md has the others' times)
        builder.call(prefetch, [place, *(ir.Constant(_i32, n) for n in (0, 2, 1))])

    def at(builder: Any, base: Any, index: Any, bytes_each: int, of: Any) -> Any:
        place = builder.add(base, builder.mul(index, ir.Constant(_i64, bytes_each)))
        return builder.inttoptr(place, of.as_pointer())

    @intrinsic
    def dots(
        _typing: Any, weight: Any, x: Any, out: Any, K: Any, x_stride: Any, out_stride: Any
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            weight, x, out, K, x_stride, out_stride = args
            _, _, features = context.codegen().magic_tuple()
            zero = ir.Constant(of.sums, None)
            tile = [(r, v) for r in range(rows) for v in range(vectors)]
            sums = {place: cgutils.alloca_once_value(builder, zero) for place in tile}
            add_up = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(_f32, [_f32, _floats]),
                f"llvm.vector.reduce.fadd.v{LANES}f32",
            )
            with cgutils.for_range(builder, builder.sdiv(K, ir.Constant(_i64, lanes))) as loop:
                k = builder.mul(loop.index, ir.Constant(_i64, lanes))
                several = []
                for v in range(vectors):
                    index = builder.add(k, builder.mul(x_stride, ir.Constant(_i64, v)))
                    place = at(builder, x, index, x_size, of.vector)
                    several.append(builder.load(place, align=x_size))
                line = builder.mul(k, ir.Constant(_i64, ROWS * size))
                for start in range(0, rows * lanes * size, 64):
                    ahead = builder.add(line, ir.Constant(_i64, start + AHEAD))
                    fetch(builder, builder.add(weight, ahead))
                for r in range(rows):
                    index = builder.add(
                        builder.mul(k, ir.Constant(_i64, ROWS)), ir.Constant(_i64, r * lanes)
                    )
                    w = builder.load(at(builder, weight, index, size, of.weights), align=size)
                    for v in range(vectors):
                        place = sums[r, v]
                        total = of.add(builder, features, w, several[v], builder.load(place))
                        builder.store(total, place)
            for r, v in tile:
                total = builder.load(sums[r, v])
                if of.sums is _words:  # all of them together may not fit 32 bits
                    total = builder.sitofp(total, _floats)
                # in any order: it is the same for every tile
                start = ir.Constant(_f32, 0.0)
                total = builder.call(add_up, [start, total], fastmath="reassoc")
                index = builder.add(
                    ir.Constant(_i64, r), builder.mul(out_stride, ir.Constant(_i64, v))
                )
                builder.store(total, at(builder, out, index, 4, _f32))
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), generate

    return dots


def _bytes(vector: Any) -> int:
    """Of one of its numbers."""
    return 4 if vector.element is _f32 else vector.element.width // 8
