"""What every process of `processes.run_together` shares: checked annotations, and the imports."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch._dynamo  # noqa: F401 - recomputed layers import it, a second in each process
from jaxtyping import install_import_hook

with install_import_hook("retnet", "beartype.beartype"):
    import retnet.model
    import retnet.ops  # noqa: F401
