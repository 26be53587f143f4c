"""The ASGI application: the route table behind the guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Collection, Sequence

import sqlalchemy as sa
from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from stepfold.projections import Projection

from ..client.client import Client
from .guard import LOCAL_HOSTS, Guard
from .pages.render import nowhere
from .routing import routes
from .service import serving
from .sessions import Authenticate
from .table import ROWS


def app(
    client: Client,
    *,
    database: str | sa.URL | sa.Engine | None = None,
    projections: Sequence[Projection] = (),
    hosts: Collection[str] = LOCAL_HOSTS,
    authenticate: Authenticate | None = None,
) -> Guard:
    """The API and the dashboard of the client's log, as an ASGI application. It needs no worker.

    `database`: where the app keeps its projections, as for a ProjectionRunner. `projections`: your own, which the app keeps up to
    date too; the `pages` of each become a dashboard. `hosts`: the names by which clients may call the server. `authenticate`: a
    function from a bearer token to its caller, such as `TokenFile(path)`; without it everybody on this machine is an admin, and
    other machines are refused.
    """

    @contextlib.asynccontextmanager
    async def lifespan(starlette: Starlette) -> AsyncGenerator[None]:
        async with serving(client, database, projections) as service:
            starlette.state.service = service
            yield

    starlette = Starlette(routes=routes(ROWS), lifespan=lifespan, exception_handlers={HTTPException: nowhere})
    starlette.router.redirect_slashes = False  # Starlette's redirect would repeat the Host header
    return Guard(starlette, hosts, authenticate)
