"""Serve: an engine for many texts at once, sessions that outlive it, and HTTP over both."""

__all__: list[str] = []
