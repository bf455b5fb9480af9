"""Other people's code, measured beside ours: optional, and imported only when asked for.

A file for each; each offers some of the roles of `roles.py`: trainee, prefiller, speaker.
"""

from retnet.bench.peers.missing import PeerMissing

__all__ = ["PeerMissing"]
