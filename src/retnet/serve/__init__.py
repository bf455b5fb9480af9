"""Serve: an engine of constant-size states, sessions, and HTTP above them."""
