"""The forms of the pages, as browsers send them."""

from __future__ import annotations

from typing import Literal

import orjson
from pydantic import BaseModel

from ...values.codec import Written
from ..problems import HttpRefusal


class StartForm(BaseModel, extra="allow"):
    """A run to start. `data`: JSON; "" is null. `run_id`: "" for one that is made. `form`: `json` if the input is `data`; else it
    is in the controls of its model, which are further fields. `do`: the button that was pressed."""

    workflow: str = ""
    data: str = ""
    run_id: str = ""
    why: str = ""
    form: str = ""
    do: str = ""

    def typed(self) -> dict[str, str]:
        """The fields of controls."""
        return {name: value for name, value in (self.model_extra or {}).items() if isinstance(value, str)}


class ActForm(BaseModel, extra="ignore"):
    """An action on a run. `id`: of a run whose id cannot be in a path. `name` of a signal; `step` of a callback, `message` of its
    failure."""

    do: Literal["signal", "cancel", "complete", "fail"]
    id: str = ""
    name: str = ""
    step: str = ""
    data: str = ""
    message: str = ""
    why: str = ""


def data(text: str) -> Written | None:
    """The JSON of a field. Raises HttpRefusal."""
    if not text.strip():
        return None
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise HttpRefusal(422, "not-json", f'the data are not JSON: {error}. A text needs its quotes: "text"') from None
    return Written(text.encode())
