"""What tests of several rooms share; import it as `from support import ...`."""

from collections.abc import Callable

from torch import Tensor, UntypedStorage
from torch.autograd.graph import saved_tensors_hooks


def kept_bytes(call: Callable[[], object]) -> dict[int, int]:
    """Bytes that a call keeps for its backward pass, by address: what is shared, once."""
    kept: dict[int, UntypedStorage] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage
        return x

    with saved_tensors_hooks(note, lambda x: x):
        call()
    return {address: storage.nbytes() for address, storage in kept.items()}


def assert_within_budget(got: Tensor, plain: Tensor, exact: Tensor, factor: float = 2.0) -> None:
    """Fail where `got` errs more than `factor` times what the plain form errs in the same dtype.

    Args:
        got: what the code under test computed.
        plain: what the plain, obvious form computes in that dtype; its error is the budget.
        exact: the float64 reference.
        factor: how much of the budget may be used.
    """
    assert got.shape == plain.shape == exact.shape, (got.shape, plain.shape, exact.shape)
    assert got.dtype == plain.dtype, f"{got.dtype} judged by the error of {plain.dtype}"
    error, budget = ((x.double() - exact).abs().max().item() for x in (got, plain))
    assert error <= factor * budget + 1e-12, (
        f"error {error:.2e} over {factor} x {budget:.2e}, the plain form's in this dtype"
    )
