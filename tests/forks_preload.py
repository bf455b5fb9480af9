"""What the processes of `forks` share: the imports."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib.figure  # noqa: F401 - the picture of a run
import torch._dynamo  # noqa: F401 - the first optimizer imports it

import retnet.bench
import retnet.serve.http
import retnet.serve.sessions
import retnet.train  # noqa: F401
