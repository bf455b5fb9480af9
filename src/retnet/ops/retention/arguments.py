"""What the op refuses, whatever its form and backend."""

from torch import Tensor

from retnet.ops.layout import Layout
from retnet.ops.retention.torch_backend import state_dtype


def check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor | None,
    layout: Layout | None,
) -> None:
    """Refuse metadata that does not fit; values are not looked at (that would stall a GPU)."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must have 4 dimensions, "
                "(B, T, H, D): add the missing ones with [None] or unflatten"
            )
    if k.shape != q.shape:
        raise ValueError(
            f"k has shape {tuple(k.shape)} and q {tuple(q.shape)}; they must be equal, "
            "(B, T, H, D_k)"
        )
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v has shape {tuple(v.shape)}; its first three sizes must be q's, "
            f"(B, T, H) = {tuple(q.shape[:3])}"
        )
    if q.shape[1] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}: T is 0; pass at least one token")
    if not q.dtype.is_floating_point or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; they must share one floating "
            "dtype: cast with .to(q.dtype)"
        )
    B, T, H, D_k = q.shape
    if log_decay.shape != (H,):
        raise ValueError(
            f"log_decay has shape {tuple(log_decay.shape)}; it must be (H,) = ({H},), "
            "one value for each head"
        )
    if state is not None:
        want = (B, H, D_k, v.shape[-1])
        if state.shape != want:
            raise ValueError(
                f"state has shape {tuple(state.shape)}; it must be (B, H, D_k, D_v) = {want}"
            )
        if state.dtype != state_dtype(q.dtype):
            raise ValueError(
                f"state has dtype {state.dtype}; for {q.dtype} inputs it must be "
                f"{state_dtype(q.dtype)}: keep states in the dtype they came in"
            )
    others = {"k": k, "v": v, "log_decay": log_decay, "state": state}
    if layout is not None:
        others |= {"layout.valid": layout.valid, "layout.starts": layout.starts}
        for name in ("valid", "starts"):
            mask = getattr(layout, name)
            if mask is not None and mask.shape != (B, T):
                raise ValueError(
                    f"layout.{name} has shape {tuple(mask.shape)}; it must be (B, T) = ({B}, {T})"
                )
    for name, tensor in others.items():
        if tensor is not None and tensor.device != q.device:
            raise ValueError(
                f"{name} is on {tensor.device} and q on {q.device}; move them to one device"
            )
