"""What every test has: a seed, one thread, no window, and property tests that repeat exactly."""

import os

# Read once, when torch and matplotlib are first imported, hence before anything else here.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "Agg"
if not os.path.exists("/dev/nvidiactl"):  # Triton's kernels then run in its interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")

import json
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("retnet", derandomize=True, deadline=None, database=None)
settings.load_profile("retnet")


@pytest.fixture(autouse=True)
def _seed() -> None:
    import torch  # here: no test needs it before, and the jaxtyping hook wants retnet unimported

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Compile kernels once for all workers: whoever comes second finds them on disk."""
    import torch
    from filelock import FileLock  # torch brings it

    from retnet.ops.program import Program, Read
    from retnet.ops.program.machine import Machine

    program = Program("float32")
    x = program.vector(1)
    program.embed(torch.ones(1, 1), 1.0, x)
    program.linear(Read(x), torch.ones(1, 1), None, None)
    with FileLock(tmp_path_factory.getbasetemp().parent / "compiled_kernels.lock"):
        Machine(program, 1).step(torch.zeros(1, dtype=torch.int64), 0)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--agreement",
        metavar="FILE",
        help="write how far we are from what others computed, of the files compared (JSON)",
    )


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--agreement")
    if file:
        from golden_files import agreement

        path = Path(file)
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | agreement(), indent=1, sort_keys=True) + "\n")
