"""Writing a program: instructions that compute one token of every row of a batch."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, NoReturn

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from retnet.ops.gate import Activation
from retnet.ops.linear_attention import LIMIT
from retnet.ops.packed_linear import Weights, quantize
from retnet.ops.program import table
from retnet.ops.program.table import LANES, LANES_OF_INT8, ROWS, TILE

NORMS = {"none": 0, "rms": table.RMS, "layer": table.LAYER, "last": table.LAST}
StepActivation = Activation | Literal["squared_relu", "exp"]
"""Also RWKV's, and linear attention's feature map."""

ACTIVATIONS: dict[StepActivation | None, int] = {
    None: 0,
    "swish": table.SWISH,
    "gelu": table.GELU,
    "relu": table.RELU,
    "squared_relu": table.SQUARED_RELU,
    "sigmoid": table.SIGMOID,
    "exp": table.EXP,
}
KINDS: dict[Weights, int] = {
    "float32": table.FLOAT32,
    "bfloat16": table.BFLOAT16,
    "int8": table.INT8,
}
DTYPES: dict[Weights, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
BLOCK = 128
"""Outputs of an item of LINEAR: a few microseconds of reading weights."""


class Vector(NamedTuple):
    """A vector of each row of the batch, in the program's memory.

    Attributes:
        start: where it begins.
        width: how many numbers.
    """

    start: int
    width: int

    def cut(self, start: int, width: int) -> "Vector":
        """Some of its numbers."""
        return Vector(self.start + start, width)


class Norm(NamedTuple):
    """How numbers are normalised.

    Attributes:
        kind: rms, layer, none, or last: divided by the last number.
        eps: its epsilon.
        weight: of a group; None for ones.
        bias: likewise; None for zeros.
        groups: that are normalised each on its own.
    """

    kind: str
    eps: float
    weight: Float[Tensor, " D"] | None = None
    bias: Float[Tensor, " D"] | None = None
    groups: int = 1


NO_NORM = Norm("none", 0.0)


class Read(NamedTuple):
    """What an instruction reads: `norm(x) * gate`."""

    x: Vector
    norm: Norm = NO_NORM
    gate: Vector | None = None


class Leaf(NamedTuple):
    """A tensor of the state of a branch: its place in the decoder, and its field."""

    layer: int
    branch: int
    field: str


class Turns(NamedTuple):
    """How RETENTION multiplies queries and keys.

    Attributes:
        cos: a leaf, (B, places, 2, H, pairs) or (B, places, 2, H, 1) where nothing rotates.
        sin: likewise.
        rotate: whether they rotate.
        interleaved: whether neighbours are pairs, or the two halves.
    """

    cos: Leaf
    sin: Leaf
    rotate: bool
    interleaved: bool


class CacheLeaves(NamedTuple):
    """What ATTENTION reads and writes: keys, values, and the slot of each row's first place."""

    k: Leaf
    v: Leaf
    begin: Leaf


class Program:
    """Instructions that compute one token of every row, in the order they are written.

    Each method appends one and takes the weights as they are: they must not change after.

    Args:
        weights: the kind that matrices are kept in.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights: Weights = weights
        self.width = 0  # numbers of a row
        self.rows: list[dict[int, int]] = []  # addresses in our own memory stand in `self.vectors`
        self.floats: list[dict[int, float]] = []
        self.vectors: list[tuple[int, int, Vector]] = []  # instruction, column
        self.leaves: list[tuple[int, int, Leaf]] = []
        self.next_leaves: list[tuple[int, int, Leaf]] = []
        self.leaf_sizes: dict[Leaf, int] = {}  # numbers of a row, or of a slot where rows grow
        self.leaf_dtypes: dict[Leaf, torch.dtype] = {}  # where they are not float32
        self.slots: dict[Leaf, dict[int, int]] = {}  # column of its address: that of how many
        self.vocab_size = 0
        self.scratch = 0  # numbers of a row that a thread needs
        self.output: tuple[int, int] | None = None
        self._kept: list[Tensor] = []

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a program holds addresses in this process and cannot be copied or pickled; pickle the "
            "model, and pack it where it is used"
        )

    def vector(self, width: int) -> Vector:
        """Memory for a vector of every row."""
        start = self.width
        self.width += -(-width // LANES) * LANES
        return Vector(start, width)

    def embed(self, weight: Float[Tensor, "V D"], factor: float, out: Vector) -> None:
        """`out = factor * weight[token]`."""
        exact = self.weights == "float32"
        self.vocab_size = len(weight)
        weight = self._keep(weight, torch.float32 if exact else torch.bfloat16)
        self._add(
            {
                table.OP: table.EMBED,
                table.KIND: table.FLOAT32 if exact else table.BFLOAT16,
                table.WEIGHT: weight.data_ptr(),
                table.OUTPUTS: out.width,
            },
            {table.OUT: out},
            {table.FACTOR: factor},
        )

    def copy(self, x: Read, out: Vector, *, add: bool = False) -> None:
        """`out = x`, or `out += x`."""
        row, vectors, floats = self._reading(x)
        row |= {table.OP: table.COPY, table.OUTPUTS: out.width, table.ADD: int(add)}
        self.scratch = max(self.scratch, out.width)
        self._add(row, vectors | {table.OUT: out}, floats)

    def shift(
        self, x: Read, mixes: Sequence[Float[Tensor, " D"]], places: int, past: Leaf
    ) -> list[Vector]:
        """`mix x + (1 - mix) (x of the token before)`: `retnet.ops.token_shift` of one token.

        Args:
            x: what is read.
            mixes: of this token in each mixture.
            places: tokens that the buffer holds beside the one before them.
            past: (B, places + 1, D), to whose places x is written; the one at the last place is
                also written to the first of the next that is bound.

        Returns:
            The mixtures.
        """
        row, vectors, floats = self._reading(x)
        D = x.x.width
        out = self.vector(len(mixes) * D)
        row |= {
            table.OP: table.SHIFT,
            table.OUTPUTS: out.width,
            table.WEIGHT: self._keep(torch.cat(list(mixes)), torch.float32).data_ptr(),
            table.PLACES: places,
        }
        self.scratch = max(self.scratch, D)
        self._keeps(past, (places + 1) * D)
        self._add(row, vectors | {table.OUT: out}, floats)
        return [out.cut(start, D) for start in range(0, out.width, D)]

    def wkv(
        self,
        kv: Vector,
        log_decay: Float[Tensor, " A"],
        bonus: Float[Tensor, " A"],
        places: int,
        past: Leaf,
    ) -> Vector:
        """One token of RWKV's average; `retnet.ops.wkv.step` is the same in PyTorch.

        Args:
            kv: keys and values.
            log_decay: per token.
            bonus: as there.
            places: as of `shift`.
            past: (B, places + 1, 2 A), to whose places the mean and the logarithm of the mass are
                written, likewise.

        Returns:
            The average.
        """
        A = len(log_decay)
        out = self.vector(A)
        row = {
            table.OP: table.WKV,
            table.WIDTH: A,
            table.WEIGHT: self._keep(torch.cat([log_decay, bonus]), torch.float32).data_ptr(),
            table.PLACES: places,
        }
        self._keeps(past, (places + 1) * 2 * A)
        self._add(row, {table.IN: kv, table.OUT: out}, {})
        return out

    def linear(
        self,
        x: Read,
        weight: Float[Tensor, "N K"],
        bias: Float[Tensor, " N"] | None,
        out: Vector | None,
        *,
        add: bool = False,
        activation: StepActivation | None = None,
        active: tuple[int, int] | None = None,
    ) -> None:
        """`out = act(x W^T + b)`, or `out += ...`.

        Args:
            x: what is read.
            weight: the matrix.
            bias: None for none.
            out: None for the result of the whole program, which is written elsewhere each time.
            add: whether to add to what is there.
            activation: of the outputs `active`; None for none.
            active: the first of them and the one after the last; None for all.
        """
        N, K = weight.shape
        row, vectors, floats = self._reading(x)
        weight, scale, lanes = weight.detach().float(), 0, LANES
        if self.weights == "int8":
            weight, scales = quantize(weight)
            lanes = LANES_OF_INT8
            scale = self._keep(scales, torch.float32).data_ptr()
        begin, end = active or (0, N)
        padded = -(-K // lanes) * lanes
        row |= {
            table.OP: table.LINEAR,
            table.ITEMS: -(-N // BLOCK),
            table.OUTPUTS: N,
            table.ADD: int(add),
            table.KIND: KINDS[self.weights],
            table.WEIGHT: self._keep(tiled(weight, lanes), DTYPES[self.weights]).data_ptr(),
            table.PADDED: padded,
            table.SCALE: scale,
            table.BIAS: 0 if bias is None else self._keep(bias, torch.float32).data_ptr(),
            table.ACTIVATION: ACTIVATIONS[activation],
            table.ACTIVE_FROM: begin,
            table.ACTIVE_TO: end,
            table.BLOCK: BLOCK,
        }
        shortened = padded // 2 + 1 if self.weights == "int8" else 0
        self.scratch = max(self.scratch, padded + shortened + BLOCK)
        floats[table.LIMIT] = LIMIT
        if out is None:
            assert self.output is None
            self.output = len(self.rows), N
        else:
            vectors |= {table.OUT: out}
        self._add(row, vectors, floats)

    def retention(
        self,
        qkv: Vector,
        widths: tuple[int, int, int],
        decays: tuple[float, ...],
        places: int,
        leaves: tuple[Leaf, Leaf, Leaf],
        turns: Turns,
    ) -> Vector:
        """One token of retention; `retnet.ops.retention.buffered` is the same in PyTorch.

        Args:
            qkv: queries, keys and values of all heads.
            widths: H, D_k, D_v.
            decays: natural logarithm of each head's decay per token.
            places: tokens that the buffers of keys and values hold.
            leaves: S, `tiled` of S^T; keys, (B, H, places, D_k); values, (B, H, places, D_v). D_k
                is padded to a multiple of LANES and D_v of ROWS, with zeros. At the last place the
                new S is written to the next S that is bound.
            turns: how queries and keys are multiplied before anything else.

        Returns:
            o of all heads.
        """
        H, D_k, D_v = widths
        out = self.vector(H * D_v)
        exponents = torch.arange(places + 1, dtype=torch.float64)
        powers = (torch.tensor(decays, dtype=torch.float64)[:, None] * exponents).exp()
        row = {
            table.OP: table.RETENTION,
            table.ITEMS: H,
            table.PARTS: max(1, D_v // 8),
            table.HEADS: H,
            table.D_K: D_k,
            table.D_V: D_v,
            table.PLACES: places,
            table.TURNS: int(turns.rotate),
            table.INTERLEAVED: int(turns.interleaved),
            table.DECAYS: self._keep(powers, torch.float32).data_ptr(),
        }
        rows_of_k = (2 + places) * (D_k + LANES)
        self.scratch = max(self.scratch, rows_of_k + D_v + ROWS + (places + 1) * (1 + ROWS))
        columns = (table.S, table.KEYS, table.VALUES, table.COS, table.SIN)
        for column, leaf in zip(columns, (*leaves, turns.cos, turns.sin), strict=True):
            self.leaves.append((len(self.rows), column, leaf))
        self.next_leaves.append((len(self.rows), table.S_NEXT, leaves[0]))
        padded_k, padded_v = (-(-D // n) * n for D, n in ((D_k, LANES), (D_v, ROWS)))
        of_tokens = (H * places * padded_k, H * places * padded_v)
        turning = places * 2 * H * (D_k // 2 if turns.rotate else 1)
        sizes = (H * padded_k * padded_v, *of_tokens, turning, turning)
        self.leaf_sizes |= zip((*leaves, turns.cos, turns.sin), sizes, strict=True)
        self._add(row, {table.IN: qkv, table.OUT: out}, {})
        return out

    def attention(
        self,
        qkv: Vector,
        widths: tuple[int, int, int],
        scale: float,
        places: int,
        leaves: CacheLeaves,
        turns: Turns,
        dtype: torch.dtype,
    ) -> Vector:
        """One token of softmax attention over a cache.

        Args:
            qkv: queries of all heads, keys and values of those that queries share.
            widths: H, H_kv, D.
            scale: of the scores.
            places: tokens after which other leaves are bound.
            leaves: keys and values, (B, H_kv, slots, D), to whose slots those of this token are
                written, at the last place also to the next that are bound; and the slot of each
                row's first place, int64.
            turns: how queries and keys rotate, by tables of (B, places, pairs).
            dtype: of the cache, float32 or bfloat16.

        Returns:
            o of all heads.
        """
        H, H_kv, D = widths
        out = self.vector(H * D)
        row = {
            table.OP: table.ATTENTION,
            table.ITEMS: H_kv,
            table.HEADS: H,
            table.KV_HEADS: H_kv,
            table.D_K: D,
            table.PLACES: places,
            table.TURNS: int(turns.rotate),
            table.INTERLEAVED: int(turns.interleaved),
            table.KIND: table.BFLOAT16 if dtype == torch.bfloat16 else table.FLOAT32,
        }
        group = H // H_kv
        self.scratch = max(self.scratch, (2 * group + 1 + TILE) * D + group * TILE + 2 * group)
        columns = {table.KEYS: leaves.k, table.VALUES: leaves.v, table.BEGIN: leaves.begin}
        if turns.rotate:
            columns |= {table.COS: turns.cos, table.SIN: turns.sin}
            self.leaf_sizes |= {turns.cos: places * (D // 2), turns.sin: places * (D // 2)}
        following = {table.KEYS_NEXT: leaves.k, table.VALUES_NEXT: leaves.v}
        index = len(self.rows)
        self.leaves += [(index, column, leaf) for column, leaf in columns.items()]
        self.next_leaves += [(index, column, leaf) for column, leaf in following.items()]
        for leaf, here, after in (
            (leaves.k, table.KEYS, table.KEYS_NEXT),
            (leaves.v, table.VALUES, table.VALUES_NEXT),
        ):
            self.leaf_sizes[leaf], self.leaf_dtypes[leaf] = H_kv * D, dtype
            self.slots[leaf] = {here: table.SLOTS, after: table.SLOTS_NEXT}
        self.leaf_sizes[leaves.begin], self.leaf_dtypes[leaves.begin] = 1, torch.int64
        self._add(row, {table.IN: qkv, table.OUT: out}, {table.FACTOR: scale})
        return out

    def _keeps(self, past: Leaf, size: int) -> None:
        """Of the next instruction: it writes to a place of this leaf, and at last to the next."""
        self.leaves.append((len(self.rows), table.PAST, past))
        self.next_leaves.append((len(self.rows), table.PAST_NEXT, past))
        self.leaf_sizes[past] = size

    def _reading(self, read: Read) -> tuple[dict[int, int], dict[int, Vector], dict[int, float]]:
        x, norm, gate = read
        row = {
            table.WIDTH: x.width,
            table.NORM: NORMS[norm.kind],
            table.GROUP: x.width // norm.groups,
        }
        if norm.weight is not None:
            row[table.NORM_WEIGHT] = self._keep(norm.weight, torch.float32).data_ptr()
            row[table.NORM_WEIGHTS] = len(norm.weight)
        if norm.bias is not None:
            row[table.NORM_BIAS] = self._keep(norm.bias, torch.float32).data_ptr()
        vectors = {table.IN: x}
        if gate is not None:
            vectors[table.GATE] = gate
        return row, vectors, {table.EPS: norm.eps}

    def _add(
        self, row: dict[int, int], vectors: dict[int, Vector], floats: dict[int, float]
    ) -> None:
        self.vectors += [(len(self.rows), column, vector) for column, vector in vectors.items()]
        self.rows.append(row)
        self.floats.append(floats)

    def _keep(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy that lives as long as the program."""
        kept = tensor.detach().to(dtype, copy=True).contiguous()
        self._kept.append(kept)
        return kept


def tiled(
    matrix: Shaped[Tensor, "*batch N K"], lanes: int = LANES
) -> Shaped[Tensor, "*batch tiles pieces rows lanes"]:
    """A matrix in the order that dot products read: `lanes` numbers of each of ROWS rows in turn.

    Zeros make it whole tiles.
    """
    *batch, N, K = matrix.shape
    matrix = F.pad(matrix, (0, -K % lanes, 0, -N % ROWS))
    return matrix.reshape(*batch, -(-N // ROWS), ROWS, -1, lanes).transpose(-3, -2).contiguous()


def untiled(
    tiles: Shaped[Tensor, "*batch tiles pieces rows lanes"], N: int, K: int
) -> Shaped[Tensor, "*batch N K"]:
    """The matrix of `tiled`."""
    return tiles.transpose(-3, -2).flatten(-4, -3).flatten(-2)[..., :N, :K]
