"""The columns of a program's table: one row per instruction, int64 each.

Addresses are bytes, strides and sizes are numbers of float32 between rows of the batch, unless said
otherwise; 0 is no address.
"""

EMBED, COPY, SHIFT, LINEAR, RETENTION, WKV, ATTENTION = range(7)
"""Instructions: what is in OP."""

RMS, LAYER, LAST = 1, 2, 3
"""Norms; 0 is none."""

SWISH, GELU, RELU, SQUARED_RELU, SIGMOID, EXP = range(1, 7)
"""Activations; 0 is none."""

FLOAT32, BFLOAT16, INT8 = range(3)
"""Kinds of weights."""

(
    OP,
    ITEMS,  # parts of the instruction, any of which any thread may do
    # what COPY, SHIFT and LINEAR read: norm(x) * gate
    IN,
    IN_STRIDE,
    WIDTH,  # numbers of a row
    NORM,
    GROUP,  # numbers that are normalised together
    NORM_WEIGHT,  # GROUP or WIDTH of them
    NORM_WEIGHTS,  # how many
    NORM_BIAS,  # as many
    GATE,
    GATE_STRIDE,
    # what all write
    OUT,
    OUT_STRIDE,
    OUTPUTS,  # of a row
    ADD,  # whether to what is there
    # EMBED and LINEAR
    KIND,
    WEIGHT,
    PADDED,  # weights of an output; those after WIDTH are zeros
    SCALE,  # of INT8, one for each output
    BIAS,
    ACTIVATION,
    ACTIVE_FROM,  # the outputs that it is applied to
    ACTIVE_TO,
    BLOCK,  # outputs of an item
    # RETENTION and ATTENTION; IN is q, k, v
    HEADS,
    PARTS,  # of D_v, an item each; in a program, how many at most
    D_K,
    D_V,
    INTERLEAVED,
    COS,  # batch, place, q or k, head, pair; of ATTENTION: batch, place, pair
    SIN,
    TURNS,  # whether q and k rotate: sines and pairs, or factors alone
    DECAYS,  # head, exponent from 0 to the number of places
    PLACES,
    S,  # (row, head) of the transposed state, D_v D_k, in tiles
    S_NEXT,  # where it goes after the last place
    KEYS,
    VALUES,
    # SHIFT and WKV; WEIGHT is their constants, and PLACES as above
    PAST,  # (row, place) of the tokens or averages, from the one before the first token on
    PAST_NEXT,  # where the newest goes after the last place
    # ATTENTION; KIND is that of the cache, KEYS and VALUES are (row, head, slot), and FACTOR scales
    KV_HEADS,
    BEGIN,  # int64, the slot of each row's first place
    SLOTS,
    KEYS_NEXT,  # where the newest goes, too, after the last place
    VALUES_NEXT,
    SLOTS_NEXT,
    COLUMNS,
) = range(48)

EPS, FACTOR, LIMIT = range(3)
"""Columns of the second table, float32: of the norm, of EMBED and scores, of what EXP takes."""
FLOATS = 3

LANES = 16
"""Numbers of a vector: what the longest registers of today hold; compilers split it for others."""

LANES_OF_INT8 = 32
"""Weights of 8 bits that are multiplied at a time; they are made 16 bits wide for it."""

ROWS = 4
"""Weight rows of a dot product of one or two vectors: as many sums as hide an addition's time."""

TILE = 64
"""Keys that ATTENTION compares with its queries at a time: their numbers stay in the cache."""
