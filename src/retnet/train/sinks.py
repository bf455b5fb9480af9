"""Where a run can be watched beside metrics.jsonl: names in `train.log_to` -> what shows it."""

from collections.abc import Callable, Sequence

from retnet.train.metrics import OpenSink


def find_sinks(names: Sequence[str]) -> list[OpenSink]:
    """What opens the sinks of these names; no file is touched.

    Raises:
        ValueError: there is no such sink, or its package is not installed.
    """
    return [_find(name) for name in dict.fromkeys(names)]


def _find(name: str) -> OpenSink:
    if name not in SINKS:
        raise ValueError(f'train.log_to ("{name}") must be one of {", ".join(SINKS)}')
    try:
        return SINKS[name]()
    except ModuleNotFoundError as error:
        raise ValueError(
            f'train.log_to ("{name}") needs the package {error.name}, which is not installed; '
            "pip install 'retnet[log]' brings it, or leave it out of train.log_to"
        ) from None


def _tensorboard() -> OpenSink:
    from retnet.train.tensorboard import TensorBoardLog  # here: an extra, and slow to import

    return TensorBoardLog


SINKS: dict[str, Callable[[], OpenSink]] = {"tensorboard": _tensorboard}
