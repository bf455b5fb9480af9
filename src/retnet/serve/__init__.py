"""Serve: an engine that decodes many texts at once, sessions that outlive it, and HTTP over both."""
