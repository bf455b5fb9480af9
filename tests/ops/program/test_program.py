"""Programs against the same sums in PyTorch, in float64."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from retnet.ops.gate import activate
from retnet.ops.linear_attention import features
from retnet.ops.packed_linear import Weights, quantize
from retnet.ops.program import NO_NORM, Norm, Program, Read, tiled, untiled

pytest.importorskip("numba", reason="pip install 'retnet[fast]' brings it")
from retnet.ops.program import kernels
from retnet.ops.program.crew import crew
from retnet.ops.program.machine import Machine

pytestmark = pytest.mark.usefixtures("compiled_kernels")

V = 11


def run(program: Program, batch: int) -> torch.Tensor:
    machine = Machine(program, batch)
    tokens = torch.arange(batch) % V
    machine.step(tokens, 0)  # counters go on from step to step
    return machine.step(tokens, 0)


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def kept(matrix: torch.Tensor, weights: Weights) -> torch.Tensor:
    """The numbers that a program multiplies by, in float64."""
    if weights == "int8":
        whole, scale = quantize(matrix)
        return whole.double() * scale.double()[:, None]
    return (matrix.bfloat16() if weights == "bfloat16" else matrix).double()


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("batch", [1, 2, 3, 7, 8, 16])
@pytest.mark.parametrize(("N", "K"), [(1, 1), (5, 17), (130, 48), (129, 31)])
def test_products_of_odd_sizes_are_exact(weights: Weights, batch: int, N: int, K: int) -> None:
    program = Program(weights)
    x = program.vector(K)
    embedding, matrix, bias = drawn(V, K), drawn(N, K), drawn(N)
    program.embed(embedding, 2.0, x)
    program.linear(Read(x), matrix, bias, None)
    rows = kept(embedding, "float32" if weights == "float32" else "bfloat16")
    rows = 2 * rows[torch.arange(batch) % V]
    want = rows @ kept(matrix, weights).T + bias.double()
    error = (run(program, batch).double() - want).abs()
    assert (error <= 1e-5 * (1 + want.abs()) + rounding(rows, matrix, weights)).all()


def rounding(x: torch.Tensor, matrix: torch.Tensor, weights: Weights) -> torch.Tensor:
    """How much products may err because x has 16 bits where weights have 8: half a step each."""
    step = x.abs().amax(-1, keepdim=True) / 32767 * (weights == "int8")
    return step / 2 * kept(matrix, weights).abs().sum(-1)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("learned", [False, True])
def test_norms_gates_and_sums(kind: str, groups: int, learned: bool) -> None:
    K, batch = 18, 3
    program = Program("float32")
    x, gate, y = program.vector(K), program.vector(K), program.vector(K)
    embedding, to_gate, matrix = drawn(V, K), drawn(K, K), drawn(K, K)
    weight, bias = drawn(2, K // groups) if learned else (None, None)
    bias = bias if kind == "layer" else None
    program.embed(embedding, 1.0, x)
    program.linear(Read(x), to_gate, None, gate)
    program.copy(Read(x), y)
    program.linear(Read(x, Norm(kind, 1e-3, weight, bias, groups), gate), matrix, None, y, add=True)
    program.linear(Read(y, NO_NORM), torch.eye(K), None, None)
    given = embedding[torch.arange(batch) % V].double()
    normed = given.unflatten(-1, (groups, -1))
    if kind == "layer":
        normed = normed - normed.mean(-1, keepdim=True)
    normed = normed * (normed.square().mean(-1, keepdim=True) + 1e-3).rsqrt()
    normed = normed if weight is None else normed * weight
    normed = (normed if bias is None else normed + bias).flatten(-2)
    want = given + (normed * (given @ to_gate.double().T)) @ matrix.double().T
    torch.testing.assert_close(run(program, batch).double(), want, rtol=1e-5, atol=1e-5)


FUNCTIONS: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    **{name: partial(activate, activation=name) for name in ("swish", "gelu", "relu", "sigmoid")},
    "squared_relu": lambda x: torch.relu(x).square(),
    "exp": partial(features, feature_map="exp"),
}


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_activations_of_a_part_of_the_outputs(activation: Any) -> None:
    program = Program("float32")
    x = program.vector(1)
    numbers = torch.linspace(-110, 110, V)[:, None]  # beyond what exp of float32 holds
    program.embed(numbers, 1.0, x)
    slopes = torch.linspace(0, 1, 150)[:, None]
    program.linear(Read(x), slopes, None, None, activation=activation, active=(3, 140))
    got = run(program, V).double()
    plain = numbers.double() @ slopes.double().T
    some = FUNCTIONS[activation](plain[:, 3:140])
    want = torch.cat((plain[:, :3], some, plain[:, 140:]), 1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_a_row_computes_the_same_bits_whoever_is_beside_it() -> None:
    outputs: dict[int, Any] = {}
    for batch in (1, 3, 8, 11):
        program = Program("int8")
        x, y = program.vector(40), program.vector(70)
        program.embed(drawn(V, 40), 1.0, x)
        program.linear(Read(x, Norm("rms", 1e-6)), drawn(70, 40), None, y, activation="swish")
        program.linear(Read(y), drawn(33, 70), None, None)
        outputs[batch] = run(program, batch)
    for batch, out in outputs.items():
        assert (out == outputs[11][:batch]).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    program = Program("bfloat16")
    x = program.vector(64)
    program.embed(drawn(V, 64), 1.0, x)
    for _ in range(4):
        y = program.vector(700)
        program.linear(Read(x), drawn(700, 64), None, y, activation="relu")
        program.linear(Read(y), 0.01 * drawn(64, 700), None, x, add=True)
    program.linear(Read(x), drawn(300, 64), None, None)
    machine = Machine(program, 2, threads - 1)
    tokens = torch.tensor([3, 4])
    first = machine.step(tokens, 0)
    assert all((machine.step(tokens, 0) == first).all() for _ in range(200))
    x0 = drawn(V, 64).bfloat16().double()[tokens]
    for _ in range(4):
        h = torch.relu(x0 @ drawn(700, 64).bfloat16().double().T)
        x0 = x0 + h @ (0.01 * drawn(64, 700)).bfloat16().double().T
    want = x0 @ drawn(300, 64).bfloat16().double().T
    torch.testing.assert_close(first.double(), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("N", "K"), [(1, 1), (4, 16), (9, 33)])
def test_tiles_give_their_matrix_back(N: int, K: int) -> None:
    matrix = drawn(2, 3, N, K)
    tiles = tiled(matrix)
    assert tiles.is_contiguous()
    assert (untiled(tiles, N, K) == matrix).all()
    assert tiles.sum() == pytest.approx(float(matrix.sum()), abs=1e-4)  # the rest is zeros
    assert F.pad(matrix, (0, -K % 16, 0, -N % 4)).numel() == tiles.numel()


@pytest.mark.parametrize("K", [64, 8192, 40_000])
def test_sums_of_many_large_products_do_not_overflow(K: int) -> None:
    """All of one sign, all as large as 8 and 16 bits hold."""
    program = Program("int8")
    x = program.vector(K)
    program.embed(torch.full((V, K), 3.0), 1.0, x)
    program.linear(Read(x), torch.stack((torch.ones(K), -torch.ones(K))), None, None)
    want = 3.0 * K * kept(torch.ones(1, 1), "int8").item()
    got = run(program, 3)
    torch.testing.assert_close(
        got, torch.tensor([[want, -want]]).expand(3, 2).float(), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e30])
def test_rows_of_any_size_keep_their_16_bits(size: float) -> None:
    """Each row has a factor of its own; what is next to nothing is zero."""
    program, matrix = Program("int8"), drawn(9, 48)
    x = program.vector(48)
    embedding = drawn(V, 48)
    embedding[1] *= size
    program.embed(embedding, 1.0, x)
    program.linear(Read(x), matrix, None, None)
    rows = kept(embedding, "bfloat16")[:3]
    want = rows @ kept(matrix, "int8").T
    bound = rounding(rows, matrix, "int8") + 1e-6 * want.abs() + 1e-27
    assert ((run(program, 3).double() - want).abs() <= bound).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_makes_its_own_row_nan(bad: float) -> None:
    program = Program("int8")
    x = program.vector(40)
    embedding = drawn(V, 40)
    embedding[1, 39] = bad
    program.embed(embedding, 1.0, x)
    program.linear(Read(x), drawn(9, 40), None, None)
    got = run(program, 3)
    assert got[1].isnan().all()
    assert got[[0, 2]].isfinite().all()


@pytest.mark.parametrize("activation", [None, *FUNCTIONS])
def test_nan_is_not_hidden(activation: Any) -> None:
    for weights in ("float32", "bfloat16", "int8"):
        program, matrix = Program(weights), drawn(9, 5)
        x, y = program.vector(5), program.vector(9)
        matrix[7, 2] = float("nan")
        program.embed(drawn(V, 5), 1.0, x)
        program.linear(Read(x), matrix, None, y, activation=activation)
        program.linear(Read(y), torch.eye(9), None, None)
        assert run(program, 3).isnan().any(1).all()


def test_two_machines_may_differ_in_helpers_and_take_turns() -> None:
    machines = []
    for helpers in (0, 1, 3):
        program = Program("float32")
        x = program.vector(64)
        program.embed(drawn(V, 64), 1.0, x)
        program.linear(Read(x), drawn(700, 64), None, None)
        machines.append(Machine(program, 1, helpers))
    tokens = torch.tensor([2])
    want = machines[0].step(tokens, 0)
    for _ in range(300):
        assert all((machine.step(tokens, 0) == want).all() for machine in machines)
    assert all(thread.is_alive() for thread in crew._threads)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_steps_go_on_in_a_child_process() -> None:
    code = """
import os, torch
from retnet.ops.program import Program, Read
from retnet.ops.program.machine import Machine
program = Program("float32")
x = program.vector(16)
program.embed(torch.randn(5, 16), 1.0, x)
program.linear(Read(x), torch.randn(300, 16), None, None)
machine = Machine(program, 1, 2)
want = machine.step(torch.tensor([3]), 0)
child = os.fork()
if child == 0:
    same = all(torch.equal(machine.step(torch.tensor([3]), 0), want) for _ in range(20))
    os._exit(0 if same else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=250)


def test_kernels_are_kept_under_a_digest_of_their_sources(tmp_path: Path) -> None:
    folder = Path(kernels.__file__).parent
    for name in ("dots.py", "intrinsics.py", "kernels.py", "table.py"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    same = kernels.digest(tmp_path)
    assert kernels.take_part.py_func.__qualname__ == f"take_part_{same}"
    (tmp_path / "table.py").write_text("LANES = 8")
    assert kernels.digest(tmp_path) != same


def test_kernels_compile_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(*_args: Any) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", nowhere)

    def twice(x: int) -> int:
        return 2 * x

    assert kernels.kept(twice)(4) == 8
