import os
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from bench.gpu.benches import CPU
from retnet.bench.gpu import device
from retnet.bench.timing import Effort

CUDA = torch.device("cuda", 0)


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.usefixtures("_no_gpu")
def test_without_a_gpu_only_toy_sizes_run() -> None:
    assert device.pick_device(quick=True) == CPU
    with pytest.raises(ValueError, match="measures a CUDA device and torch sees none"):
        device.pick_device(quick=False)


def test_the_backend_is_triton_or_torch_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(device, "HAVE_TRITON", False)
    assert device.pick_backend(CPU) == "torch"
    assert device.pick_backend(CUDA) == "triton"
    assert environment == {}
    monkeypatch.setattr(device, "HAVE_TRITON", True)
    assert device.pick_backend(CPU) == "triton"
    assert environment == {"TRITON_INTERPRET": "1"}


def test_a_record_of_a_gpu_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    memory = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    assert device.source_of(CUDA).device == "A GPU, 80 GiB"
    assert "core" in device.source_of(CPU).device


def test_a_gpu_is_timed_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, _: "Event") -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert device.clock_of(CUDA)(lambda: log.append("call")) == 0.25
    assert log == ["record", "call", "record", "wait"]


def test_short_calls_are_timed_in_blocks_that_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    costs = {"a": 0.005, "b": 0.05}

    def clock(call: Callable[[], object]) -> float:
        before = len(calls)
        call()
        return sum(costs[name] for name in calls[before:])

    monkeypatch.setattr(device, "clock_of", lambda _: clock)
    both = {name: lambda name=name: calls.append(name) for name in costs}
    seconds = device.take_turns(both, CPU, Effort(warmup=0, min_rounds=2, budget_s=1e-9))
    assert "".join(calls) == "ab" + 2 * ("aaaa" + "b")
    assert seconds == {"a": pytest.approx([0.005] * 2), "b": pytest.approx([0.05] * 2)}


def test_an_error_that_came_of_a_lack_of_memory_is_one() -> None:
    def broken_off() -> None:
        try:
            raise torch.OutOfMemoryError("no memory")
        finally:
            raise RuntimeError("the recording broke off")

    with pytest.raises(RuntimeError) as found:
        broken_off()
    assert device.is_out_of_memory(found.value)
    assert not device.is_out_of_memory(RuntimeError("something else"))


def test_memory_is_that_of_tensors_on_a_gpu_and_of_the_process_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert device.watch_memory(CPU)() > 0.01
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 3 * 2**30)
    assert device.watch_memory(CUDA)() == 3.0


def test_memory_that_no_tensor_holds_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append("back"))
    device.free_memory(CPU)
    assert given == []
    device.free_memory(CUDA)
    assert given == ["back"]
