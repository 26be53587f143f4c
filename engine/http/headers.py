"""The headers of HTTP that the routes of runs read and write."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request

from ..client.view import RunView
from .positions import LogPosition
from .problems import HttpRefusal
from .service import Service

POSITION = "Stepfold-Position"
MAX_WAIT_S = 60
REACH_S = 5.0
"""How long a read of a table waits for the position that the caller names."""

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)
_ETAG = re.compile(r'(?:W/)?"(\d{1,10})-(\d{1,19})"')


def wait_s(request: Request) -> int | None:
    """The seconds of `Prefer: wait=n` (RFC 7240), at most 60; None without it."""
    found = _WAIT.search(request.headers.get("prefer", ""))
    return None if found is None else min(int(found[1]), MAX_WAIT_S)


async def while_asked(request: Request, waiting: Coroutine[Any, Any, None]) -> None:
    """Await `waiting` until it ends or the client disconnects. Raises HttpRefusal if the server stops meanwhile."""
    wait, gone = asyncio.create_task(waiting), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((wait, gone), return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        raise HttpRefusal(503, "server-stops", "the server stops; ask again", headers={"Retry-After": "1"}) from None
    finally:
        wait.cancel()
        gone.cancel()
        await asyncio.wait((wait, gone))
    if not wait.cancelled():
        wait.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def applied(waited_s: int | None) -> dict[str, str]:
    """The headers of an answer to a caller who asked to wait."""
    return {} if waited_s is None else {"Preference-Applied": f"wait={waited_s}"}


def etag_of(view: RunView) -> str:
    """The ETag of a run: `"partition-offset"` of the last record that the view has read, a claim or a record of the run."""
    return f'"{view.state.partition}-{view.state.offset - 1}"'


def offset_in(etag: str) -> int | None:
    """The offset in an ETag; None if this server does not write such ETags."""
    found = _ETAG.fullmatch(etag.strip())
    return None if found is None else int(found[2])


def check_match(request: Request, view: RunView) -> None:
    """Compare the run with `If-Match`. Raises HttpRefusal if the run has a record after the one that the caller has seen.

    A claim of the partition does not count: it does not change the run.
    """
    wanted = request.headers.get("if-match")
    if wanted is None or wanted.strip() == "*":
        return
    seen = offset_in(wanted)
    if seen is None or view.changed_at > seen:
        raise HttpRefusal(412, "run-moved-on", f"the run has moved on: its newest record is at offset {view.changed_at}")


def request_id(request: Request) -> str | None:
    """The value of `Idempotency-Key` without its quotes; None without the header. Raises HttpRefusal unless it has 1 to 200
    printable ASCII characters."""
    key = request.headers.get("idempotency-key")
    if key is None:
        return None
    key = key.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 0 < len(key) <= 200 or not key.isascii() or not key.isprintable():
        raise HttpRefusal(400, "idempotency-key-invalid", "Idempotency-Key must have 1 to 200 printable ASCII characters")
    return key


def next_page(request: Request, path: str, cursor: str | None) -> dict[str, str]:
    """The `Link` header to the next page of a list, at the cursor and with the same conditions. No header if the cursor is None:
    this is the last page."""
    if cursor is None:
        return {}
    pairs = [(name, value) for name, value in request.query_params.multi_items() if name != "cursor"]
    query = urlencode([*pairs, ("cursor", cursor)])
    return {"Link": f'<{request.scope.get("root_path", "")}{path}?{query}>; rel="next"'}


def position_after(partition: int, offset: int) -> dict[str, str]:
    """The `Stepfold-Position` header after a record: everything up to this record."""
    return {POSITION: str(LogPosition(partition, offset + 1))}


async def reach(service: Service, request: Request) -> None:
    """Wait until the tables hold everything below the `Stepfold-Position` that the caller sends. Raises HttpRefusal after 5
    seconds."""
    text = request.headers.get(POSITION)
    if text is None:
        return
    try:
        position = LogPosition.parse(text)
    except ValueError as error:
        raise HttpRefusal(400, "position-invalid", f"{POSITION}: {error}") from None
    if not await service.reached(position, REACH_S):
        raise HttpRefusal(
            503, "tables-behind", f"the tables have not reached {position} yet; try again", headers={"Retry-After": "1"}
        )
