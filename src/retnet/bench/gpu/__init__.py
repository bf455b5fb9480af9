"""The ruler on a GPU: `retnet bench gpu`."""

from retnet.bench.gpu.suite import GPU_BENCHES
from retnet.bench.gpu.tables import GPU_TABLES

__all__ = ["GPU_BENCHES", "GPU_TABLES"]
