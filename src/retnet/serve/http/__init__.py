"""HTTP over the engine: the routes that clients of OpenAI know, and a few more."""

from retnet.serve.http.app import create_app
from retnet.serve.http.context import Limits
from retnet.serve.http.keys import Keys
from retnet.serve.http.server import serve

__all__ = ["Keys", "Limits", "create_app", "serve"]
