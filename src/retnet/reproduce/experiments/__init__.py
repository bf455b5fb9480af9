"""The experiments, by the names of `retnet reproduce`."""

from retnet.reproduce.experiment import Experiment
from retnet.reproduce.experiments.extrapolation import Extrapolation
from retnet.reproduce.experiments.table5 import Table5

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment for experiment in (Table5(), Extrapolation())
}

__all__ = ["EXPERIMENTS"]
