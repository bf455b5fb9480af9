"""Spread a model over the processes of a run: PyTorch's FSDP2, one unit per layer."""

from typing import Literal

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from retnet.model import Decoder
from retnet.train.ranks import Ranks

Shard = Literal["full", "node", "none"]


def shard_model(model: Decoder, ranks: Ranks, shard: Shard) -> None:
    """Let every process keep a part of the weights, and gather a layer's when it is its turn.

    Gradients become means over all processes. Does nothing in a run of one process.

    Args:
        model: the same on every process; changed in place, its parameters become DTensors.
        ranks: the processes.
        shard: over how many processes one copy of the weights is spread: all, those of one
            machine, or one, which is data parallelism with a whole copy on each.
    """
    if ranks.size == 1:
        return
    copies = ranks.size // {"full": ranks.size, "node": ranks.local_size, "none": 1}[shard]
    mesh = init_device_mesh(
        ranks.device.type, (copies, ranks.size // copies), mesh_dim_names=("copy", "shard")
    )
    mesh = mesh if copies > 1 else mesh["shard"]
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    # The loss reads the head's weight after `hidden` has returned, so the outermost unit, which
    # holds embedding, norm and head, stays gathered until the backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")
    for unit in (*model.layers, model):
        # FSDP keeps the tensors that it gathers weights into. Made now, they are ordinary ones; a
        # run that goes on with a validation would make them in inference mode, unfit for training.
        assert isinstance(unit, FSDPModule)
        unit.unshard()
        unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The tensor of which a process may have a part; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
