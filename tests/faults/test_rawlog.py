"""The judge of the fault tests finds what it is there to find."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import judge
import pytest
import rawlog
from rawlog import Audit, Raw, StepExecution

RUN, OWNER, OTHER = "run", "host-10-a", "host-20-b"


def record(offset: int, event: dict[str, Any], at: int = 0) -> Raw:
    at = at or 1000 + offset
    value = json.dumps({"v": 1, "run_id": RUN, "at": at, **event}).encode()
    return Raw(0, offset, at, "@claim" if event["type"] == "claim" else RUN, value)


def claim(offset: int, prev: int, owner: str | None) -> Raw:
    return record(offset, {"type": "claim", "prev": prev, "owner": owner, "nonce": "n"})


def completed(offset: int, token: str, attempt: int = 1, held: int = 0) -> Raw:
    event = {"type": "step-completed", "claim": held, "step_id": "a", "attempt": attempt, "result": token}
    return record(offset, event)


def decision(offset: int, kind: str, held: int = 0, **fields: Any) -> Raw:
    return record(offset, {"type": kind, "claim": held, **fields})


def end(offset: int, token: str, held: int = 0) -> Raw:
    return decision(offset, "completed", held, result={"results": {"a": token}, "signals": []})


STARTED = record(1, {"type": "started", "request": "r", "workflow": "w", "input": None})
GOOD = [claim(0, -1, OWNER), STARTED, completed(2, "x"), end(3, "x")]
RAN = StepExecution(RUN, "a", 1, 10, 1001, "x")
TOLD: dict[str, Any] = {RUN: {"type": "completed", "result": {"results": {"a": "x"}, "signals": []}}}


def judged(
    records: Sequence[Raw],
    executions: Sequence[StepExecution] = (RAN,),
    acknowledged: Sequence[str] = (RUN,),
    told: dict[str, Any] = TOLD,
) -> Audit:
    audit = Audit()
    audit.follow(records, partitions=1)
    audit.check_runs(acknowledged, told)
    audit.check_returned()
    audit.check_executions(executions)
    return audit


def test_a_good_history_is_accepted() -> None:
    counts = judged(GOOD).conclude()
    assert (counts.accepted, counts.ends, counts.results, counts.void) == (4, {"completed": 1}, 1, {})


def failures(number: int) -> list[Raw]:
    error = {"type": "E", "message": ""}
    return [
        decision(2 + n, "step-failed", step_id="a", attempt=1 + n, error=error, next_at=1000 + n if n < number - 1 else None)
        for n in range(number)
    ]


@pytest.mark.parametrize(
    ("audit", "finds"),
    [
        (lambda: judged(GOOD, acknowledged=[RUN, "another"]), "acknowledged and is not in the log"),
        (lambda: judged(GOOD[:3], told={}), "has not ended"),
        (lambda: judged(GOOD, told={RUN: {"type": "failed"}}), "a caller was told"),
        (lambda: judged([*GOOD[:3], end(3, "y")], told={}), "its code was given"),
        (lambda: judged(GOOD, [RAN._replace(token="y")]), "no execution gave"),
        (lambda: judged(GOOD, [RAN, RAN._replace(attempt=2)]), "beyond the accepted"),
        (lambda: judged(GOOD, [RAN, RAN._replace(at=2000)]), "ran after the result"),
        (lambda: judged(GOOD, [RAN, RAN._replace(at=2000, pid=99)]), "pid=99.* ran after the result"),
        (lambda: judged([*GOOD[:3], GOOD[3]._replace(offset=2)]), "does not rise"),
        (lambda: judged([*GOOD[:2], *failures(4), decision(6, "failed")], told={}), "failed 4 times, 3 are allowed"),
        (
            lambda: judged(
                [
                    *GOOD[:2],
                    decision(2, "sleep-scheduled", step_id="s", wake_at=5000),
                    decision(3, "sleep-completed", step_id="s", at=5000),
                ],
                told={},
            ),
            "it was due at 5000",
        ),
    ],
)
def test_a_broken_promise_is_found(audit: Callable[[], Audit], finds: str) -> None:
    with pytest.raises(AssertionError, match=finds):
        audit().conclude()


def test_a_zombie_is_void_and_may_have_executed() -> None:
    """It was fenced at 2 and did not know: what it writes is void, what it ran is counted."""
    records = [*GOOD[:2], claim(2, 0, OTHER), completed(3, "zombie"), completed(4, "x", held=2), end(5, "x", held=2)]
    zombie = RAN._replace(at=2000, token="zombie")
    counts = judged(records, [RAN._replace(pid=20), zombie]).conclude()
    assert counts.void == {"stale claim": 1}
    assert counts.takeovers == 1
    assert counts.executed_by_fenced == 1


@pytest.mark.parametrize(
    ("late", "reason"),
    [
        (claim(4, -1, OTHER), "stale claim: claim"),
        (completed(4, "y"), "ended run: step-completed"),
        (end(4, "y"), "ended run: completed"),
        (STARTED._replace(offset=4), "known run"),
        (STARTED._replace(offset=4, key="other"), "another run's key"),
        (STARTED._replace(offset=4, value=b"\xff"), "no event"),
        (STARTED._replace(offset=4, value=b"[]"), "no event"),
    ],
)
def test_what_changes_nothing_is_void(late: Raw, reason: str) -> None:
    assert judged([*GOOD, late]).conclude().void == {reason: 1}


def test_a_second_result_is_void() -> None:
    assert judged([*GOOD[:3], completed(3, "y", attempt=2), end(4, "x")]).conclude().void == {"precondition: step-completed": 1}


@pytest.mark.parametrize("module", [rawlog, judge])
def test_the_judge_shares_no_code_with_the_engine(module: ModuleType) -> None:
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in imported if name.partition(".")[0] in ("stepfold", "engine", "drivers", "projections")]
