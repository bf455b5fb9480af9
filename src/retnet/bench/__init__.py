"""Bench: the ruler. Cases named once, gates, timing in turns, records, and tables made of them."""

from retnet.bench.forms import FormRow, form_disagreement
from retnet.bench.page import update_docs
from retnet.bench.run import BENCHES, BenchResult, run_bench, show_bench

__all__ = [
    "BENCHES",
    "BenchResult",
    "FormRow",
    "form_disagreement",
    "run_bench",
    "show_bench",
    "update_docs",
]
