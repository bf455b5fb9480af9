"""The experiments, by the names of `retnet reproduce`."""

from retnet.reproduce.experiment import Experiment
from retnet.reproduce.experiments.benches import FIGURE6, TABLE4
from retnet.reproduce.experiments.extrapolation import Extrapolation
from retnet.reproduce.experiments.figure5 import Figure5
from retnet.reproduce.experiments.lm_layouts import LmLayouts
from retnet.reproduce.experiments.probes import Probes
from retnet.reproduce.experiments.quality import Quality
from retnet.reproduce.experiments.table5 import Table5
from retnet.reproduce.experiments.table6 import Table6
from retnet.reproduce.experiments.table8 import Table8

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Table5(),
        Table6(),
        Figure5(),
        FIGURE6,
        TABLE4,
        Table8(),
        Extrapolation(),
        Probes(),
        LmLayouts(),
        Quality(),
    )
}

__all__ = ["EXPERIMENTS"]
