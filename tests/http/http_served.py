"""A server of the HTTP API in this process, without sockets."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import httpx

from stepfold import Client
from stepfold.http import app


@contextlib.asynccontextmanager
async def served(client: Client, **options: Any) -> AsyncGenerator[httpx.AsyncClient]:
    """A browser's view of the app of `client`; the app starts and stops with the block."""
    made = app(client, **options)
    async with made.lifespan():
        transport = httpx.ASGITransport(made, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as browser:
            yield browser
