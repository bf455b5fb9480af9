"""What the process tells the shell."""

OK = 0

FAILED = 2
"""What the user gave is refused."""

INTERRUPTED = 130
"""Stopped by Ctrl-C, as shells have it: 128 and the number of the signal."""
