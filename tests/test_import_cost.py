"""`import retnet` and `retnet --help` answer at once: what is slow to import waits for its use."""

import subprocess
import sys

SLOW = (
    *("torch", "transformers", "peft", "matplotlib", "tensorboard"),
    *("datasets", "pyarrow", "huggingface_hub"),
)

REPORT = f"""
import sys
print("imported:", *(name for name in {SLOW!r} if name in sys.modules))
"""


def run_fresh(code: str) -> str:
    """Return what `code`, and then the report, print in a new interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_retnet_imports_nothing_slow() -> None:
    assert run_fresh("import retnet; dir(retnet)").splitlines()[-1] == "imported:"


def test_help_imports_nothing_slow() -> None:
    out = run_fresh(
        "import contextlib\n"
        "from retnet.cli import main\n"
        "with contextlib.suppress(SystemExit): main(['--help'])\n"
    )
    assert "usage" in out.lower()
    assert out.splitlines()[-1] == "imported:"


def test_the_report_sees_what_was_imported() -> None:
    assert run_fresh("import torch").splitlines()[-1] == "imported: torch"
