"""Decode steps as CUDA graphs: recorded once, then each is launched at the cost of one call.

Eager decoding of one token launches hundreds of kernels that each last microseconds, and Python is
slower than they are. A graph replays all of them without it. In return the step is frozen: the
batch, the dtypes and the addresses of all tensors are those of the recording, and what Python
decided then is decided for good.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from retnet.model.decoder import Decoder
from retnet.model.state import DecoderState

Capture = Callable[[Callable[[], object]], Callable[[], object]]
"""Takes a step that has no arguments and returns what runs it again on the same tensors."""

WARM_UPS = 3  # libraries allocate, and Triton compiles, in the first calls: never in a recording
MOST_STEPS = 64


def cuda_capture(step: Callable[[], object]) -> Callable[[], None]:
    """Record the kernels that a step launches, and return what launches them all again.

    Args:
        step: called a few times, the last of them recorded. It reads and writes tensors that live
            as long as what is returned, and never waits for the GPU: no `.item()`, no branch on a
            tensor's values, no copy from or to the CPU. A recorded call computes nothing yet.

    Returns:
        A function that replays the recording; what the step returned is then in the tensors that
        its recorded call made.

    Raises:
        ValueError: there is no CUDA device.
        RuntimeError: the step does what cannot be recorded; PyTorch's message says what. Random
            numbers of the device then begin again from its seed.
    """
    if not torch.cuda.is_available():
        raise ValueError(
            "a CUDA graph needs a CUDA device, and torch sees none; call the step itself"
        )
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except BaseException:
        _replace_generator()
        raise
    return graph.replay


def _replace_generator() -> None:
    """Give the device's generator a state of its own, with the same seed.

    PyTorch lets a recording take part in that state. One that breaks off may not let go of it, and
    then nothing random runs on the device any more: "Offset increment outside graph capture".
    """
    device = torch.cuda.current_device()
    fresh = torch.Generator(torch.device("cuda", device)).manual_seed(torch.cuda.initial_seed())
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())


class GraphedDecoder:
    """The steps of a fixed batch, recorded once: each call reads one token of each row.

    A branch's state may change its shape from step to step if it comes back to one it had before,
    as a buffer does that fills up and is emptied: a graph is recorded for each step until then, and
    calls go round these steps. Where the round closes, what the last step made is copied into the
    earlier state's tensors, unless they were changed in place.

    What cannot be recorded is refused where PyTorch sees it. A counter that Python keeps in a state
    is not seen, so all that changes in a state must be in tensors.

    Example on a GPU::

        logits, state = prefill(model, prompts)
        graphed = GraphedDecoder(model, copy_state(state))
        graphed.load(state)
        for _ in range(100):
            logits = graphed(logits.argmax(-1))
    """

    def __init__(
        self, model: Decoder, state: DecoderState, capture: Capture = cuda_capture
    ) -> None:
        """Record steps until their shapes come round.

        Args:
            model: in evaluation mode, its weights where they will stay. Changing them in place is
                seen by later calls; moving them is not.
            state: of the shapes to decode with, plain or of opened branches. Its tensors become
                this object's own, so that a large cache is not held twice; recording changes what
                is in them, so `load` what to continue from.
            capture: how to record; `cuda_capture`, but for tests.

        Raises:
            ValueError: the model is in training mode, the state grows with every step, or there is
                no CUDA device.
            RuntimeError: the step cannot be recorded.
        """
        if model.training:
            raise ValueError(
                "the model is in training mode, whose dropout must not be recorded; "
                "call model.eval() first"
            )
        self._model = model
        # positions that all rows share may be one number in memory
        self._states = {0: state._replace(position=state.position.clone())}
        self._tokens = torch.zeros_like(self._states[0].position)[:, None]  # B 1
        self._logits: dict[int, Tensor] = {}
        self._replays: list[Callable[[], object]] = []
        self._next = self._back = 0  # the step to call next, and the one after the last
        with torch.inference_mode():
            while len(self._replays) in self._states:
                if len(self._replays) == MOST_STEPS:
                    raise ValueError(
                        f"after {MOST_STEPS} steps the state's shapes have not come back to ones "
                        "before: it grows, and a graph cannot; open its branches' states first"
                    )
                self._replays.append(capture(partial(self._step, len(self._replays))))
                self._replays[-1]()  # the next recording begins with numbers, not with old memory

    @property
    def state(self) -> DecoderState:
        """What the rows have read; `copy_state` keeps it, the next call overwrites it."""
        return self._states[self._next]

    @torch.inference_mode()
    def __call__(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B V"]:
        """Read one token of each row and give the logits of the next.

        Returns:
            Memory that a later call overwrites.

        Raises:
            ValueError: tokens are not one for each row.
        """
        if tokens.shape != self._states[0].position.shape:
            raise ValueError(
                f"tokens has shape {tuple(tokens.shape)}; the steps were recorded for one token of "
                f"each of {len(self._tokens)} rows: record others for another batch"
            )
        self._tokens.copy_(tokens[:, None])
        index = self._next
        self._replays[index]()
        self._next = index + 1 if index + 1 < len(self._replays) else self._back
        return self._logits[index]

    @torch.inference_mode()
    def load(self, state: DecoderState) -> None:
        """Go on from another state of the shapes that recording began with, which is copied.

        Raises:
            ValueError: its tensors have other shapes.
        """
        if not _same_shapes(self._states[0], state):
            raise ValueError(
                "the state is not of the shapes that were recorded; pass one of the same batch, "
                "plain or opened as the first was"
            )
        _copy(self._states[0], state)
        self._next = 0

    def _step(self, index: int) -> None:
        logits, after = self._model(self._tokens, self._states[index])
        self._logits[index] = logits[:, -1]
        for earlier in range(index + 1):
            if _same_shapes(self._states[earlier], after):
                self._back = earlier
                return _copy(self._states[earlier], after)
        self._states[index + 1] = after
        return None


def _same_shapes(first: Any, second: Any) -> bool:
    """Whether nested tuples have tensors of the same shapes and dtypes at the same places."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and first.dtype == second.dtype
    if isinstance(first, tuple) and isinstance(second, tuple):
        pairs = zip(first, second, strict=True)
        return len(first) == len(second) and all(_same_shapes(*pair) for pair in pairs)
    return first is second is None


def _copy(kept: Any, new: Any) -> None:
    """Copy tensors into those at the same places; what was changed in place is there already."""
    if isinstance(kept, Tensor):
        if new.data_ptr() != kept.data_ptr():
            kept.copy_(new)
    elif isinstance(kept, tuple):
        for old, now in zip(kept, new, strict=True):
            _copy(old, now)


__all__ = ["Capture", "GraphedDecoder", "cuda_capture"]
