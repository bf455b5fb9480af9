"""A server as its users meet it: a process of its own, and clients that talk HTTP to it."""
