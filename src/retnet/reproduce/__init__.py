"""Reproduce: experiments as configs for train, evaluate and bench, and the page drawn from them."""

from retnet.reproduce.demo import DemoOptions, DemoResult, run_demo

__all__ = ["DemoOptions", "DemoResult", "run_demo"]
