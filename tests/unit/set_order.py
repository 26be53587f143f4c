"""A workflow that iterates over a set of strings, whose order depends on the process.

Writes the history of a run, or replays the one that it is given and says how that went; both as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from stage import Note, Stage

from stepfold.authoring.step import Step
from stepfold.errors import NonDeterminism

NAMES = ("anna", "bert", "carl", "dora", "emil")


async def in_set_order(step: Step, note: Note) -> Any:
    for name in set(NAMES):
        note(name)
        await step.run(name, str)


def main(given: str) -> dict[str, Any]:
    stage = Stage(in_set_order)
    if not given:
        while stage.waits_for:
            stage.step_gives(stage.live.notes[-1], "")
        return {"order": stage.live.notes}
    for name in json.loads(given)["order"]:
        stage.ledger.accepts("step-completed", step_id=name, attempt=1, result="")
    try:
        stage.replayed()
    except NonDeterminism as error:
        return {"expected": error.expected, "found": error.found, "source": error.source}
    return {"same": True}


print(json.dumps(main(sys.stdin.read())))
