from dataclasses import fields

from retnet.cli.options import SamplingOptions
from retnet.model.sampling import Sampling


def test_sampling_options_are_the_fields_of_sampling() -> None:
    """They are written twice, so that help needs no torch."""
    ours = {field.name: field.type for field in fields(SamplingOptions)}
    theirs = {field.name for field in fields(Sampling)}
    assert set(ours) == theirs


def test_options_become_the_librarys_settings() -> None:
    options = SamplingOptions(temperature=0.5, top_k=3, seed=7)
    assert options.sampling() == Sampling(temperature=0.5, top_k=3, top_p=0.95, seed=7)
