"""What a record may say is published and only grows: `records.txt` is all of it, a line for each field, and no line ever changes.

A field that comes gets its lines there by hand: what breaks readers is seen in review. `!` after a name: must be there.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import orjson

from stepfold.events import json_schema

GOLDEN = Path(__file__).with_name("records.txt")
NOT_OF_THE_VALUE = {"offset", "timestamp"}
FOR_PEOPLE = {"title", "description", "default"}


def lines() -> list[str]:
    """The schema as it is now. Of `v` the models know a default, and every record says it."""
    found: list[str] = []
    for name, schema in json_schema()["$defs"].items():
        properties: dict[str, dict[str, Any]] = schema["properties"]
        kind = properties.get("type", {}).get("const", name)
        for field, form in properties.items():
            if field not in NOT_OF_THE_VALUE:
                required = "!" if field in {"type", "v", *schema["required"]} else ""
                said = {key: value for key, value in form.items() if key not in FOR_PEOPLE}
                found.append(f"{kind} {field}{required} {orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode()}")
    return found


def test_the_schema_is_the_one_that_is_published() -> None:
    assert sorted(GOLDEN.read_text().splitlines()) == sorted(lines())


def test_nothing_that_was_published_has_changed() -> None:
    history = ["git", "log", "--format=", "--unified=0", "--no-renames", "-p", "--", GOLDEN.name]
    log = subprocess.run(history, cwd=GOLDEN.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
    gone = {line[1:] for line in log.splitlines() if line.startswith("-") and not line.startswith("---")}
    assert not gone - set(GOLDEN.read_text().splitlines())
