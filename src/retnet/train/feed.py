"""What a process reads at each step, and the states that its rows carry from one to the next."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from retnet.data import Batch, TokenStream, carried_batch, training_batch
from retnet.model import Decoder, DecoderState
from retnet.model.state import concat_rows, select_rows, state_tensors, with_tensors
from retnet.train.config import RunConfig
from retnet.train.ranks import Ranks


class Feed:
    """A run's batches, as seen by one of its processes.

    Args:
        stream: the training tokens.
        config: the run's.
        ranks: the processes that share its rows.
        model: tells what an empty state looks like, if states are carried.
    """

    def __init__(
        self, stream: TokenStream, config: RunConfig, ranks: Ranks, model: Decoder
    ) -> None:
        self._stream = stream
        self._config = config
        self._ranks = ranks
        self._state: DecoderState | None = None
        if config.train.carry_state:
            self._state = empty_state(model, config.train.batch_size // ranks.data_size)
            _check_constant(self._state)

    def parts(self, step: int) -> Iterator[tuple[Batch, DecoderState | None]]:
        """Yield each part of a step, and the state before it; None is the start of a text.

        Where rows are spread over processes, a part is this one's slice of them, and the state
        that before the whole rows.
        """
        train, ranks = self._config.train, self._ranks
        read = training_batch if self._state is None else carried_batch
        for part in range(train.accumulate):
            batch = read(
                self._stream,
                seq_len=train.seq_len,
                batch_size=train.batch_size,
                seed=self._config.run.seed,
                step=step,
                rank=ranks.data_rank,
                world_size=ranks.data_size,
                micro_step=part,
                micro_steps=train.accumulate,
            )
            rows = len(batch.inputs)
            state = self._state
            if state is not None:
                state = select_rows(state, range(part * rows, (part + 1) * rows))
            slices = batch if ranks.row is None else map(ranks.row.part, batch)
            yield Batch(*(t.to(ranks.device, non_blocking=True) for t in slices)), state

    def carry(self, states: list[DecoderState]) -> None:
        """Take the states after a step's parts, for the next step."""
        if self._state is not None:
            self._state = concat_rows(states)

    def tensors(self) -> dict[str, Tensor]:
        """The carried states by name, rows of all processes as one tensor; to save and restore."""
        if self._state is None:
            return {}
        tensors = state_tensors(self._state)
        if self._ranks.mesh is not None:
            placements = [Shard(0), Replicate()]
            tensors = {
                name: DTensor.from_local(tensor, self._ranks.mesh, placements)
                for name, tensor in tensors.items()
            }
        return {f"carried/{name}": tensor for name, tensor in tensors.items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on with what `tensors` returned and a checkpoint was read into."""
        if self._state is not None:
            local = {
                name.removeprefix("carried/"): t.to_local() if isinstance(t, DTensor) else t
                for name, t in tensors.items()
            }
            self._state = with_tensors(self._state, local)


def _check_constant(empty: DecoderState) -> None:
    for name, tensor in state_tensors(empty).items():
        if tensor.numel() == 0:
            raise ValueError(
                f"train.carry_state needs states of one size, and {name} grows with every token "
                "read; set it to false, or choose mixers with constant states"
            )


@torch.no_grad()
def empty_state(model: Decoder, rows: int) -> DecoderState:
    """The state of rows that have read nothing: padding changes none."""
    device = model.embed_tokens.weight.device
    nothing = torch.zeros(rows, 1, dtype=torch.bool, device=device)
    _, state = model.hidden(nothing.long(), valid=nothing)
    return state
