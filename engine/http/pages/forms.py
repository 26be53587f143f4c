"""The forms of the pages, as browsers send them."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl

import orjson

from ...values.codec import Written
from ..problems import HttpRefusal
from ..routing import BODY_BYTES, HttpCall

FORM = "application/x-www-form-urlencoded"
FIELDS = 20


async def fields(call: HttpCall) -> Mapping[str, str]:
    """The fields of the form, each once. Line ends are as the user typed them, but for the carriage returns of browsers."""
    kind = call.request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != FORM:
        raise HttpRefusal(415, "unsupported-media-type", f"the form must be {FORM}")
    body = b""
    async for chunk in call.request.stream():
        body += chunk
        if len(body) > 3 * BODY_BYTES:  # a byte may be sent as three
            raise HttpRefusal(413, "payload-too-large", "the form is too large")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS, errors="strict")
    except ValueError as error:
        raise HttpRefusal(400, "not-a-form", f"the form cannot be read: {error}") from None
    found = {name: value.replace("\r\n", "\n") for name, value in pairs}
    if len(found) != len(pairs):
        raise HttpRefusal(400, "not-a-form", "a field comes twice")
    return found


def data(text: str) -> Written | None:
    """The JSON of a field; nothing in it is null."""
    if not text.strip():
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise HttpRefusal(422, "not-json", f'the data are not JSON: {error}. A text needs its quotes: "text"') from None
    return Written(text.encode())
