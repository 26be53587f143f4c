"""The checks of `step.publish`."""

from __future__ import annotations

from typing import Any

from ..errors import PayloadTooLarge, ValueInvalid
from ..operations.publish import MAX_VALUE_BYTES, Publication
from ..values.codec import plain
from ..values.names import quoted, valid_name
from ..values.same import shown


def publication(key: str, value: Any, inside: str | None) -> Publication:
    """A publication of the value as it is now. `inside`: the id of the step whose function calls. Raises as `Step.publish`."""
    if inside is not None:
        raise RuntimeError(
            f"step.publish({shown(key)}) was called inside step {inside!r}: publish from the workflow. A step tells its progress "
            "by current_step().heartbeat(details)"
        )
    if not valid_name(key):
        raise ValueError(f"{quoted(key)} is not a key to publish under: 1 to 200 printable characters")
    try:
        json = plain(value)
    except ValueInvalid as error:
        raise ValueInvalid(f"step.publish({key!r}): {error}") from error
    if len(json) > MAX_VALUE_BYTES:
        raise PayloadTooLarge(f"step.publish({key!r}): {len(json):,} bytes; the limit is {MAX_VALUE_BYTES:,}")
    return Publication(key, json)
