"""The HTTP API of a log and its dashboard: `app(client)` for your own ASGI server, `stepfold serve` for a server of its own."""

from .app import app
from .routing import Caller, Role
from .signed import SignedTokens
from .tokens import TokenFile

__all__ = ["Caller", "Role", "SignedTokens", "TokenFile", "app"]
