"""Nothing but this room needs the libraries around it."""

import subprocess
import sys

CODE = """
import importlib, sys

for name in ("transformers", "peft", "accelerate", "datasets"):
    sys.modules[name] = None  # from here on, as if it were not installed
for room in ("hub", "model", "data", "train", "evaluate", "cli.generate", "cli.train"):
    importlib.import_module("retnet." + room)
try:
    import retnet.hf
except ImportError as error:
    print(error)
"""


def test_the_core_runs_without_transformers_and_the_adapter_says_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "retnet.hf needs the transformers library, which is missing; pip install 'retnet[hf]'\n"
    )
