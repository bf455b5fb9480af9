"""Ops: pure functions; one folder per recurrence, all its forms and backends behind it."""

from retnet.ops.attention import attention
from retnet.ops.layout import Layout
from retnet.ops.retention import retention
from retnet.ops.scan import linear_recurrence
from retnet.ops.sequence import SequenceRanks
from retnet.ops.wkv import wkv

__all__ = ["Layout", "SequenceRanks", "attention", "linear_recurrence", "retention", "wkv"]
