"""What attention refuses: metadata that does not fit; values are not looked at."""

from torch import Tensor

from retnet.ops.attention.reach import Reach
from retnet.ops.attention.states import AttentionState
from retnet.ops.attention.window import WindowState


def check(
    q: Tensor, k: Tensor, v: Tensor, state: AttentionState | WindowState | None, reach: Reach
) -> None:
    """Raise a ValueError where shapes, dtypes or devices do not fit."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must have 4 dimensions, "
                "(B, T, H, D): add the missing ones with [None] or unflatten"
            )
    B, T, H, D_k = q.shape
    if T == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}: T is 0; pass at least one token")
    H_kv = k.shape[2]
    if k.shape != (B, T, H_kv, D_k) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"k has shape {tuple(k.shape)} and v {tuple(v.shape)}; beside q {tuple(q.shape)} they "
            "must be (B, T, H_kv, D_k) and (B, T, H_kv, D_v)"
        )
    if H_kv == 0 or H % H_kv:
        raise ValueError(
            f"q has {H} heads and k {H_kv}; the number of queries' heads must be a multiple of "
            "that of keys"
        )
    if not q.dtype.is_floating_point or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k, v have dtypes {q.dtype}, {k.dtype}, {v.dtype}; they must share one floating "
            "dtype: cast with .to(q.dtype)"
        )
    for name, tensor in (
        ("k", k),
        ("v", v),
        *zip(("state.k", "state.v"), state or (), strict=False),
    ):
        if tensor.device != q.device:
            raise ValueError(
                f"{name} is on {tensor.device} and q on {q.device}; move them to one device"
            )
    if state is None:
        return
    want_type = AttentionState if reach.window is None else WindowState
    if type(state) is not want_type:
        raise ValueError(
            f"the state is of type {type(state).__name__}; with window {reach.window} it must be "
            f"of type {want_type.__name__}: read the text again with this window"
        )
    if reach.window is not None and state.k.ndim == 4:
        slots = reach.sinks + reach.window
        if state.k.shape[2] != slots:
            raise ValueError(
                f"state.k has {state.k.shape[2]} slots; with window {reach.window} and sinks "
                f"{reach.sinks} it must have {slots}: read the text again with this window"
            )
    for name, held, new in (("k", state.k, k), ("v", state.v, v)):
        slots = state.k.shape[2] if state.k.ndim == 4 else -1
        want = (B, H_kv, slots, new.shape[3])
        if held.shape != want:
            raise ValueError(
                f"state.{name} has shape {tuple(held.shape)}; it must be (B, H_kv, slots, D) = "
                f"({B}, {H_kv}, slots, {new.shape[3]}), with as many slots in k as in v"
            )
        if held.dtype != q.dtype:
            raise ValueError(
                f"state.{name} has dtype {held.dtype} and q {q.dtype}; read a text in one dtype"
            )
