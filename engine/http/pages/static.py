"""The files that pages load, in a fixed map: no part of a request becomes the name of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.responses import Response

from ..problems import HttpRefusal
from ..routing import HttpCall

_FOLDER = Path(__file__).parent / "static"
_TYPES = {
    "dashboard.css": "text/css; charset=utf-8",
    "dashboard.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
FILES = {name: ((_FOLDER / name).read_bytes(), media_type) for name, media_type in _TYPES.items()}
VERSION = hashlib.sha256(b"".join(content for content, _ in FILES.values())).hexdigest()[:12]
"""A part of the files' URLs. It changes with their content, so browsers may cache the files for ever."""


async def asset(call: HttpCall) -> Response:
    found = FILES.get(call.path["name"])
    if found is None:
        raise HttpRefusal(404, "not-found", "there is nothing at this path")
    content, media_type = found
    return Response(content, headers={"Content-Type": media_type, "Cache-Control": "public, max-age=31536000, immutable"})
