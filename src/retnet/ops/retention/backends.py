"""Who computes retention: the forms of each backend, and which backend by default."""

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from retnet.ops.retention import torch_backend
from retnet.types import Backend

log = logging.getLogger(__name__)

Compute = Callable[..., tuple[Tensor, Tensor]]

FORMS = {
    "torch": ("parallel", "recurrent", "chunkwise"),
    "triton": ("recurrent", "chunkwise"),
}

HAVE_TRITON = find_spec("triton") is not None
"""Looked up once, without importing it: that takes a second, and only GPUs need it."""


def resolve(backend: Backend | None, form: str, q: Tensor, v: Tensor) -> Backend:
    """The backend asked for; where none is, Triton if these inputs and this machine suit it."""
    if backend is not None:
        return backend
    chosen: Backend = "triton" if q.is_cuda and _suits_triton(form, q, v) else "torch"
    if not torch.compiler.is_compiling():
        _say(f"retention: {chosen} computes the {form} form of {q.dtype} on {q.device.type}")
    return chosen


def compute(backend: str, form: str) -> Compute:
    """The function of a form.

    Raises:
        ValueError: there is no such form and backend; the message lists those there are. Or the
            backend is not installed.
    """
    if form not in FORMS.get(backend, ()):
        have = ", ".join(f"{b}/{f}" for b, forms in FORMS.items() for f in forms)
        raise ValueError(f"retention has no {backend}/{form}; choose one of {have}")
    return getattr(torch_backend if backend == "torch" else triton(), form)


def triton() -> ModuleType:
    """The Triton backend, imported when first used.

    Raises:
        ValueError: Triton is not installed.
    """
    if not HAVE_TRITON:
        raise ValueError(
            "the triton backend needs the package triton, which is not installed; install it with "
            "pip install 'retnet[gpu]', or use backend=\"torch\""
        )
    from retnet.ops.retention import triton_backend

    return triton_backend


def _suits_triton(form: str, q: Tensor, v: Tensor) -> bool:
    if form not in FORMS["triton"] or not HAVE_TRITON or torch.version.hip is not None:
        return False
    if torch.cuda.get_device_capability(q.device) < (8, 0):  # bfloat16 and TF32 products
        return False
    return triton().why_not(q.dtype, q.shape[-1], v.shape[-1]) is None


@cache
def _say(message: str) -> None:
    log.info(message)
