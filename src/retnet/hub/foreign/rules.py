"""Which tensor of theirs is which of ours: one table, read in both directions."""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from retnet.hub.foreign.tensors import Entry, Tensors
from retnet.ops.rotation import PairLayout


@runtime_checkable
class Change(Protocol):
    """How tensors of theirs become tensors of ours, and back to the bit.

    Both are also called with tensors on the device `meta`, to learn the shapes of what they give.
    """

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """Tensors of ours, in the order of the rule's names."""
        ...

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """The way back."""
        ...


class Same:
    """One tensor, as it is."""

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return theirs

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return ours


class Stacked:
    """Their one tensor holds several of ours, one below the other."""

    def __init__(self, *rows: int) -> None:
        """Say how many rows each of ours has."""
        self.rows = rows

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        [whole] = theirs
        return whole.split(self.rows)

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return (torch.cat(ours),)


class Shaped:
    """The same numbers in another shape."""

    def __init__(self, theirs: tuple[int, ...], ours: tuple[int, ...]) -> None:
        """Give both shapes; -1 stands for what is left."""
        self.theirs, self.ours = theirs, ours

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return tuple(x.reshape(self.ours) for x in theirs)

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return tuple(x.reshape(self.theirs) for x in ours)


class Tied:
    """They store one matrix twice, as embedding and as head; we store it once."""

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """See `Change`; refuses two matrices that differ."""
        first, second = theirs
        if not first.is_meta and not torch.equal(first, second):
            raise ValueError(
                "the config says that embedding and head are one matrix, and the file holds two "
                "that differ; correct that field of the config"
            )
        return (first,)

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return ours * 2


class Paired:
    """Rows of queries or keys, whose pairs of channels rotate together: in another order.

    `interleaved` rotates rows (0, 1), (2, 3), ... of a head, `half` rows (0, D_k / 2), ...
    """

    def __init__(self, num_heads: int, ours: PairLayout, theirs: PairLayout) -> None:
        self.num_heads = num_heads
        self.ours: PairLayout = ours
        self.theirs: PairLayout = theirs

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return tuple(self._order(x, self.theirs, self.ours) for x in theirs)

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        return tuple(self._order(x, self.ours, self.theirs) for x in ours)

    def _order(self, x: Tensor, have: PairLayout, want: PairLayout) -> Tensor:
        heads = x.unflatten(0, (self.num_heads, -1))
        return reorder_pairs(heads, 1, have, want).flatten(0, 1)


class Grouped:
    """Each head of ours has a copy of the rows that its group of heads shares in theirs."""

    def __init__(self, num_heads: int, num_groups: int) -> None:
        self.num_heads, self.num_groups = num_heads, num_groups

    def to_ours(self, *theirs: Tensor) -> tuple[Tensor, ...]:
        """See `Change`."""
        [x] = theirs
        heads = x.unflatten(0, (self.num_groups, -1))
        return (heads.repeat_interleave(self.num_heads // self.num_groups, 0).flatten(0, 1),)

    def to_theirs(self, *ours: Tensor) -> tuple[Tensor, ...]:
        """See `Change`; refuses heads of a group that differ."""
        [x] = ours
        heads = x.unflatten(0, (self.num_groups, self.num_heads // self.num_groups, -1))
        if not x.is_meta and not torch.equal(heads, heads[:, :1].expand_as(heads)):
            raise ValueError(
                f"the heads of a group differ, so {self.num_heads} heads cannot share "
                f"{self.num_groups} keys and values; leave num_kv_heads out"
            )
        return (heads[:, 0].flatten(0, 1),)


def reorder_pairs(x: Tensor, axis: int, have: PairLayout, want: PairLayout) -> Tensor:
    """Channels in the order that another layout of rotating pairs has."""
    if have == want:
        return x
    shape = (-1, 2) if have == "interleaved" else (2, -1)
    return x.unflatten(axis, shape).transpose(axis, axis + 1).flatten(axis, axis + 1)


SAME = Same()


class Rule(NamedTuple):
    """Some tensors of ours, the same of theirs, and how they differ."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    change: Change = SAME


def one(ours: str, theirs: str, change: Change = SAME) -> Rule:
    """A rule for one tensor."""
    return Rule((ours,), (theirs,), change)


class Mapped:
    """Tensors seen through rules: computed when they are read."""

    def __init__(
        self, tensors: Tensors, rules: Iterable[Rule], toward: Literal["ours", "theirs"]
    ) -> None:
        """Find out names, shapes and dtypes; nothing is read.

        Raises:
            ValueError: a tensor that a rule wants is missing, or has a shape that does not fit.
        """
        self._tensors, self._toward = tensors, toward
        self._rules: dict[str, tuple[Rule, int]] = {}
        self.entries: dict[str, Entry] = {}
        rules = tuple(rules)
        inputs = [name for rule in rules for name in self._inputs(rule)]
        _refuse_missing(inputs, tensors.entries)
        for rule in rules:
            blank = [tensors.entries[name].meta() for name in self._inputs(rule)]
            try:
                outputs = self._apply(rule, blank)
            except RuntimeError as error:  # PyTorch's word for sizes that do not fit
                shapes = ", ".join(
                    f"{name} {tuple(x.shape)}"
                    for name, x in zip(self._inputs(rule), blank, strict=True)
                )
                raise ValueError(
                    f"{shapes} cannot become {', '.join(self._outputs(rule))}: {error}; a number "
                    "of the config, such as that of the heads, is not this file's"
                ) from None
            for index, (name, x) in enumerate(zip(self._outputs(rule), outputs, strict=True)):
                self.entries[name] = Entry(tuple(x.shape), x.dtype)
                self._rules[name] = rule, index

    def read(self, name: str) -> Tensor:
        """See `Tensors`."""
        rule, index = self._rules[name]
        inputs = [self._tensors.read(name) for name in self._inputs(rule)]
        try:
            return self._apply(rule, inputs)[index]
        except ValueError as error:
            raise ValueError(f"{', '.join(rule.theirs)}: {error}") from None

    def _inputs(self, rule: Rule) -> tuple[str, ...]:
        return rule.theirs if self._toward == "ours" else rule.ours

    def _outputs(self, rule: Rule) -> tuple[str, ...]:
        return rule.ours if self._toward == "ours" else rule.theirs

    def _apply(self, rule: Rule, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        function = rule.change.to_ours if self._toward == "ours" else rule.change.to_theirs
        return function(*inputs)


def _refuse_missing(wanted: Iterable[str], entries: Mapping[str, Entry]) -> None:
    missing = [name for name in wanted if name not in entries]
    if missing:
        raise ValueError(
            f"{len(missing)} tensors are missing: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; the file is incomplete, or one of several"
        )
