"""Train: a run from one TOML file, in one folder, that goes on as if never interrupted."""

from retnet.train.config import RunConfig, RunSection, TrainSection, load_config
from retnet.train.flags import cli_config
from retnet.train.memory import keep_freed_memory
from retnet.train.metrics import read_metrics
from retnet.train.plot import plot_metrics
from retnet.train.run import TrainResult, train
from retnet.train.tune import TuneSection

__all__ = [
    "RunConfig",
    "RunSection",
    "TrainResult",
    "TrainSection",
    "TuneSection",
    "cli_config",
    "keep_freed_memory",
    "load_config",
    "plot_metrics",
    "read_metrics",
    "train",
]
