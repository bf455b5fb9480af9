"""Linear layers that read the same input, computed as one product."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retnet.ops.linear import products
from retnet.ops.packed_linear import PackedLinear, Weights


class JointLinear:
    """Some linear layers of a module, by name; parameters and checkpoints know nothing of it.

    One product reads the input once and gives its gradient without a sum over the layers. That
    holds only for plain linear layers: where one was replaced (by a LoRA, say) or has hooks, each
    is called on its own. The module is named at each call, so that its copies, such as those of
    data parallelism, use their own layers.

    Example:
        >>> mixer = nn.Module()
        >>> mixer.up, mixer.down = nn.Linear(4, 6), nn.Linear(4, 2)
        >>> [tuple(y.shape) for y in JointLinear("up", "down")(mixer, torch.ones(3, 4))]
        [(3, 6), (3, 2)]
    """

    def __init__(self, *names: str) -> None:
        self._names = names
        self._packed: PackedLinear | None = None
        self._widths: list[int] = []

    def __call__(self, owner: nn.Module, x: Float[Tensor, "*rows D"]) -> tuple[Tensor, ...]:
        """The output of each layer of `owner`, in the order of the names."""
        if self._packed is not None and not torch.is_grad_enabled():
            y = self._packed(x)
            # not y.split: what it does in Python takes as long as a small product
            return torch.split_with_sizes(y, self._widths, -1) if len(self._widths) > 1 else (y,)
        linears = self._linears(owner)
        # without gradients the weights of a few rows cost more to join than to read apart
        few = not torch.is_grad_enabled() and x.numel() // x.shape[-1] < FEW_ROWS
        if few or not _joinable(linears) or linears[0].bias is not None:
            return tuple(linear(x) for linear in linears)
        return products(x, *(linear.weight for linear in linears))

    def pack(self, owner: nn.Module, weights: Weights) -> None:
        """Keep a packed copy for calls without gradients; the layers must not change after.

        Raises:
            ValueError: a layer is no plain `nn.Linear`.
        """
        self._packed = PackedLinear(*self.joined(owner), weights)
        self._widths = [linear.out_features for linear in self._linears(owner)]

    def joined(self, owner: nn.Module) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"] | None]:
        """The weights of all layers as one matrix, and their biases as one vector.

        Raises:
            ValueError: a layer is no plain `nn.Linear`.
        """
        linears = self._linears(owner)
        if not _joinable(linears):
            kinds = ", ".join(sorted({type(linear).__name__ for linear in linears}))
            raise ValueError(
                f"{', '.join(self._names)} are {kinds}, with biases, hooks or types that differ; "
                "only plain linear layers can be packed: merge adapters into them first"
            )
        biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
        rows: list[Tensor] = [linear.weight for linear in linears]
        return torch.cat(rows), torch.cat(biases) if biases else None

    def _linears(self, owner: nn.Module) -> list[Any]:
        return [getattr(owner, name) for name in self._names]


FEW_ROWS = 128
"""Below it, reading all weights once more to join them is most of the work."""

PLAIN = (nn.Parameter, Tensor)
"""Types of weights whose products are plain ones; weights of few bits, say, have their own."""


def is_watched(module: nn.Module) -> bool:
    """Whether someone listens to a module's calls, or put another forward in its place.

    Its own computation must then not be done for it: a library that keeps weights elsewhere, say,
    brings them when the module is called.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def _joinable(linears: Sequence[nn.Module]) -> bool:
    """Whether all are plain linear layers, that nobody watches, with or without biases alike."""
    return (
        all(type(linear) is nn.Linear for linear in linears)
        and all(type(linear.weight) in PLAIN for linear in linears)
        and len({linear.bias is None for linear in linears}) == 1
        and not any(map(is_watched, linears))
    )
