"""The kinds of operations: each record, rule and delivery belongs to one of them, and none is forgotten in a table."""

from __future__ import annotations

from collections import Counter
from typing import get_args

import pytest
from histories import begun

from stepfold import events
from stepfold.core import lifecycle
from stepfold.core.records import Base, Decision, OperationDecision, OperationRequest
from stepfold.core.state import Open
from stepfold.operations import CALLS, ENDS, KINDS, OPEN, RULES, SETTLED_BY, TELLS, TOLD
from stepfold.operations.attempted import AttemptsCall
from stepfold.operations.call import Call
from stepfold.operations.kind import Kind
from stepfold.operations.step import OpenStep, StepCall
from stepfold.operations.told import Notice, Told
from stepfold.values.codec import ANY
from stepfold.values.retry import Retry

OF_KINDS = [record for kind in (*KINDS, *TOLD) for record in kind.records]
OF_RUNS = [found for found in vars(lifecycle).values() if isinstance(found, type) and issubclass(found, Base)]


def types(records: list[type[Base]]) -> set[str]:
    return {record.model_fields["type"].default for record in records if "type" in record.model_fields}


def test_each_event_type_belongs_to_one_kind_or_to_the_life_of_a_run() -> None:
    assert not [record for record, times in Counter(OF_KINDS).items() if times > 1]
    assert not types(OF_KINDS) & types(OF_RUNS)
    assert types(OF_KINDS) | types(OF_RUNS) == types(list(get_args(events.Event)))


def test_each_event_of_a_run_has_a_rule() -> None:
    assert RULES.keys() | lifecycle.RULES.keys() == types(list(get_args(events.RunEvent))) - {"started"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_kind_is_whole(kind: Kind) -> None:
    assert kind.name == kind.open.kind == kind.call.kind
    assert kind.rules.keys() == types(list(kind.records))
    decisions = types([record for record in kind.records if issubclass(record, OperationDecision)])
    assert decisions <= kind.tells.keys() <= decisions | types([one for one in kind.records if issubclass(one, OperationRequest)])
    shared = AttemptsCall.settles.keys() if kind.attempts and kind.name != "step" else frozenset[str]()
    assert kind.ends.keys() == kind.call.settles.keys() - shared >= kind.gives_back.keys()
    assert kind.call.words
    assert kind.open.wait is not Open.wait


@pytest.mark.parametrize("kind", TOLD, ids=lambda kind: kind.notice.kind)
def test_a_kind_of_things_that_are_told_is_whole(kind: Told) -> None:
    assert kind.rules.keys() == types(list(kind.records))
    assert all(issubclass(record, Decision) and record.never_ends for record in kind.records)
    assert kind.notice.kind and kind.notice.max_names > 0
    assert kind.notice.record is not Notice.record and kind.notice.too_many is not Notice.too_many
    with pytest.raises(NotImplementedError):
        Notice("n").record(1)
    with pytest.raises(NotImplementedError):
        Notice("n").too_many()


def test_no_two_kinds_have_a_name_a_record_or_a_delivery_in_common() -> None:
    assert len(OPEN) == len(CALLS) == len(KINDS)
    assert len(RULES) == len(OF_KINDS)
    assert len(ENDS) == sum(len(kind.ends) for kind in KINDS)
    assert len(SETTLED_BY) == len(ENDS) + sum(len(kind.call.progress) + len(kind.call.begins) for kind in KINDS)
    assert SETTLED_BY["result"].kind == "step", "conditions end by the results of their checks, too"
    assert len(TELLS) == sum(len(kind.tells) for kind in KINDS)


def test_an_open_step_says_which_attempt_is_awaited() -> None:
    step = OpenStep(0)
    assert step.words("s") == "step 's': the result of attempt 1" and not step.told
    assert step.ends_at is None
    assert StepCall(len, (), Retry(), None, False, ANY).key == ""
    step.attempts, step.next_at, step.error = 1, 1_000, {"type": "E", "message": "no"}
    assert step.words("s") == "step 's': attempt 2 at 1970-01-01 00:00:01 UTC, after E: no" and step.told


def test_a_kind_has_a_time_a_first_record_and_words_of_its_own_only_if_it_says_so() -> None:
    class Bare(Open):
        kind = "bare"

    class Asked(Call):
        kind = "bare"

    opened, call = Bare(), Asked()
    opened.resumed()
    opened.dropped(begun().run, "s")
    opened.run_cancelled(begun().run, "s")
    call.check(opened)
    assert opened.due_at is opened.when_due is None and opened.told and opened.words("s") == "bare 's'"
    assert not opened.due_fields(by_log=False) and opened.due_by_log is None and not opened.actions
    with pytest.raises(NotImplementedError):
        opened.wait("r", "s")
    assert call.lasts_ms is None and not call.ends_first and call.begin("s", 0, str) is None
