"""Running a program; the maths is in `kernels.py`, and this needs Numba."""

import threading

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.ops.program import kernels, table
from retnet.ops.program.crew import crew
from retnet.ops.program.program import Leaf, Program

PATIENCE = 2_500_000
"""Times that a helper looks for the next step before it sleeps: two to three milliseconds, for a
server chooses tokens for many texts between two steps."""

ENOUGH = 16
"""Items of an instruction that no more parts are needed for: each part rotates q and k anew."""

ALL_ROWS = (table.LINEAR,)
"""Instructions whose items are of all rows of the batch; those of the others are of one."""

STRIDES = {
    table.IN: table.IN_STRIDE,
    table.GATE: table.GATE_STRIDE,
    table.OUT: table.OUT_STRIDE,
}


class Machine:
    """A program with memory for a batch of one size.

    Args:
        program: complete.
        batch: rows.
        helpers: threads that may help.
    """

    def __init__(self, program: Program, batch: int, helpers: int = 0) -> None:
        assert program.output is not None
        self.helpers = helpers
        self._program = program
        self._batch = batch
        self._memory = torch.zeros(batch * program.width)
        self._table = np.zeros((len(program.rows), table.COLUMNS), np.int64)
        self._floats = np.zeros((len(program.rows), table.FLOATS), np.float32)
        for index, (row, floats) in enumerate(zip(program.rows, program.floats, strict=True)):
            for column, value in row.items():
                self._table[index, column] = value
            for column, number in floats.items():
                self._floats[index, column] = number
            if row[table.OP] not in ALL_ROWS:
                self._table[index, table.ITEMS] = items = batch * row.get(table.ITEMS, 1)
                if table.PARTS in row:
                    parts = min(row[table.PARTS], -(-ENOUGH // items))
                    self._table[index, table.PARTS] = parts
                    self._table[index, table.ITEMS] *= parts
        for index, column, vector in program.vectors:
            self._table[index, column] = self._memory.data_ptr() + 4 * vector.start
            self._table[index, STRIDES[column]] = program.width
        at, self._outputs = program.output
        self._table[at, table.OUT_STRIDE] = self._outputs
        self._output = self._table[at, table.OUT : table.OUT + 1]
        threads = helpers + 1
        # of each instruction: its items that are done, and those of each thread that are begun
        self._counters = np.zeros((len(program.rows) * (1 + threads), kernels.LINE), np.int64)
        self._job = np.zeros(kernels.LINE, np.int64)
        self._job[kernels.STEP], self._job[kernels.B] = -1, batch
        self._job[kernels.THREADS] = threads
        # PyTorch's memory begins at a cache line: a vector on two of them takes twice the time
        self._scratch = [torch.zeros(batch * program.scratch).numpy() for _ in range(helpers + 1)]
        self._seen = [-1] * helpers
        self._lock = threading.Lock()
        crew.grow(helpers)

    def bind(self, leaves: dict[Leaf, Tensor]) -> None:
        """Step on these leaves from now on; whoever calls keeps them alive.

        Raises:
            ValueError: one is not contiguous, of another dtype, or of another size.
        """
        self._point(self._program.leaves, leaves)

    def bind_next(self, leaves: dict[Leaf, Tensor]) -> None:
        """Write to these leaves at the last place; otherwise like `bind`."""
        self._point(self._program.next_leaves, leaves)

    def _point(self, to: list[tuple[int, int, Leaf]], leaves: dict[Leaf, Tensor]) -> None:
        program = self._program
        for _, _, leaf in to:
            tensor, numel = leaves[leaf], self._batch * program.leaf_sizes[leaf]
            grows = leaf in program.slots
            if tensor.numel() % numel if grows else tensor.numel() != numel:
                raise ValueError(
                    f"{leaf} has {tensor.numel()} numbers; for {self._batch} rows of this program "
                    f"it must have {'a multiple of ' * grows}{numel}: a model steps on states that "
                    "it opened itself"
                )
            dtype = program.leaf_dtypes.get(leaf, torch.float32)
            if tensor.dtype != dtype or not tensor.is_contiguous():
                raise ValueError(
                    f"{leaf} is {tensor.dtype} with strides {tensor.stride()}; it must be "
                    f"contiguous and {dtype}"
                )
        for index, column, leaf in to:
            self._table[index, column] = leaves[leaf].data_ptr()
            if leaf in program.slots:
                slots = leaves[leaf].numel() // (self._batch * program.leaf_sizes[leaf])
                self._table[index, program.slots[leaf][column]] = slots

    def step(self, tokens: Int[Tensor, " B"], place: int) -> Float[Tensor, "B N"]:
        """The program's output for one token of each row.

        Args:
            tokens: their ids.
            place: how many tokens the buffers hold already.

        Raises:
            IndexError: a token is not in the vocabulary.
        """
        assert tokens.shape == (self._batch,)
        for token in tokens.tolist():
            if not 0 <= token < self._program.vocab_size:
                raise IndexError(
                    f"token {token} is not in a vocabulary of {self._program.vocab_size}"
                )
        tokens = tokens.to(torch.int64).contiguous()
        out = torch.empty(self._batch, self._outputs)
        with self._lock:
            job = self._job
            job[kernels.PLACE], job[kernels.TOKENS] = place, tokens.data_ptr()
            job[kernels.REST] = 0
            self._output[0] = out.data_ptr()
            if job[kernels.SPINS] < self.helpers:
                for helper in range(self.helpers):
                    crew.call(self, helper)
            self._take_part(0, int(job[kernels.STEP]), 0)
        return out

    def rest(self) -> None:
        """Let helpers sleep until the next step: someone else needs the cores."""
        self._job[kernels.REST] = 1

    def help(self, helper: int) -> None:
        """Take part in steps until none has begun for a moment; for the crew."""
        if helper >= self.helpers:  # it was called for a machine with more
            return
        self._seen[helper] = self._take_part(helper + 1, self._seen[helper], PATIENCE)

    def _take_part(self, who: int, seen: int, patience: int) -> int:
        everything = self._table, self._floats, self._counters, self._job
        return kernels.take_part(*everything, self._scratch[who], seen, patience, who)
