"""Whatever a run raises, or fails to do, ends or quarantines that run; it is told, and the others go on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, cast

import pytest
from eventually import eventually
from local_logs import NewLog
from neighbours import neighbour_of, quarantined
from one_run import LIMIT_S
from pydantic import AfterValidator, BaseModel, PlainSerializer

from stepfold import Client, Context, NonDeterminism, Retry, RetryAfter, Step, WorkflowFailed, current_step


def unprintable() -> Exception:
    def exits(self: object) -> Any:
        raise SystemExit

    kind: Any = type("Odd", (SyntaxError,), {"__str__": exits, "__cause__": property(exits), "__class__": property(exits)})
    return kind("unexpected", cast(Any, ("rules.txt", 1, 3, 42)))


def raises(error: BaseException) -> Any:
    raise error


def raising(error: type[BaseException]) -> Callable[[Any], Any]:
    return lambda value: raises(error("in the user's type"))


class Awkward(BaseModel):
    number: Annotated[int, PlainSerializer(raising(KeyboardInterrupt))] = 1


class Picky(type):
    def __instancecheck__(cls, instance: Any) -> bool:
        raise asyncio.CancelledError


class Later(RetryAfter):
    def __init__(self) -> None:
        super().__init__(1)
        self.delay = cast(Any, object())


async def fails(ctx: Context, step: Step) -> None:
    raise unprintable()


async def interrupts(ctx: Context, step: Step) -> None:
    raise KeyboardInterrupt


async def gives_what_cannot_be_written(ctx: Context, step: Step) -> Awkward:
    return Awkward()


async def cancels_itself_in_a_type(ctx: Context, step: Step) -> Annotated[int, PlainSerializer(raising(asyncio.CancelledError))]:
    return 1


async def step_fails(ctx: Context, step: Step) -> None:
    await step.run("s", raises, unprintable(), retry=Retry(1))


async def plain_step_interrupts(ctx: Context, step: Step) -> None:
    await step.run("s", raises, KeyboardInterrupt("plain"), retry=Retry(1))


async def plain_step_exits(ctx: Context, step: Step) -> None:
    await step.run("s", raises, GeneratorExit("plain"), retry=Retry(1))


async def async_step_interrupts(ctx: Context, step: Step) -> None:
    async def interrupt() -> None:
        raise KeyboardInterrupt("async")

    await step.run("s", interrupt, retry=Retry(1))


async def async_step_is_closed(ctx: Context, step: Step) -> None:
    async def end() -> None:
        raise GeneratorExit("async")

    await step.run("s", end, retry=Retry(1))


async def retries_by_what_cannot_be_asked(ctx: Context, step: Step) -> None:
    kind = cast("type[Exception]", Picky("Kind", (Exception,), {}))
    await step.run("s", raises, ValueError("no"), retry=Retry(5, retry_on=kind))


async def retries_at_no_time(ctx: Context, step: Step) -> None:
    await step.run("s", raises, Later())


async def ignores_its_timeout(ctx: Context, step: Step) -> None:
    async def swallows() -> None:
        while True:
            with contextlib.suppress(BaseException):
                await asyncio.sleep(0.01)

    await step.run("s", swallows, timeout="10ms", retry=Retry(1))


HOSTILE = {
    fails: "Odd: its message cannot be shown",
    interrupts: "KeyboardInterrupt",
    gives_what_cannot_be_written: "in the user's type",
    cancels_itself_in_a_type: "in the user's type",
    step_fails: "Odd: its message cannot be shown",
    plain_step_interrupts: "KeyboardInterrupt: plain",
    plain_step_exits: "the step function raised GeneratorExit: plain",
    async_step_interrupts: "KeyboardInterrupt: async",
    async_step_is_closed: "GeneratorExit: async",
    retries_by_what_cannot_be_asked: "ValueError: no",
    retries_at_no_time: "try again after",
    ignores_its_timeout: "TimeoutError",
}


@pytest.mark.parametrize("handler", HOSTILE, ids=lambda handler: handler.__name__)
async def test_a_run_fails_alone_and_one_line_says_so(new_log: NewLog, handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(driver=new_log())
    hostile = client.workflow(id="hostile")(handler)
    neighbour = neighbour_of(client)
    async with client.worker(grace=0.05):
        before = await client.start_workflow(neighbour, 1)
        run = await client.start_workflow(hostile, run_id="r")
        after = await client.start_workflow(neighbour, 2)
        with pytest.raises(WorkflowFailed) as caught:
            await run.result(LIMIT_S)
        assert HOSTILE[handler] in str(caught.value.error)
        assert await before.result(LIMIT_S) == 2 and await after.result(LIMIT_S) == 3
    told = [record for record in caplog.records if record.name == "stepfold.run" and record.levelno == logging.ERROR]
    of_step = [record for record in told if "attempt" in record.__dict__]
    assert len(told) - len(of_step) == 1 and len(of_step) == (caught.value.error.step_id == "s")
    for record in told:
        fields = record.__dict__
        assert (fields["run_id"], fields["workflow"], fields["step_id"]) == ("r", "hostile", caught.value.error.step_id)
        assert HOSTILE[handler] in fields["error"] and "run r of hostile failed" in record.getMessage()
        assert "Traceback" in fields["traceback"] and "Traceback" in record.getMessage()


async def waits_for_nothing(ctx: Context, step: Step) -> None:
    await asyncio.get_running_loop().create_future()


async def leaves_a_branch_behind(ctx: Context, step: Step) -> None:
    ctx.ext_task = asyncio.create_task(step.sleep("z", 100))  # type: ignore[attr-defined]  # kept from the collector
    await asyncio.sleep(0.01)


async def fails_at_last(ctx: Context, step: Step) -> None:
    await step.run("s", raises, ValueError("no"), retry=Retry(2, backoff="1ms"))


async def logs_itself(ctx: Context, step: Step) -> None:
    ctx.log.info("in the workflow", extra=None)
    await step.run("plain", lambda: current_step().log.info("in a step"), retry=Retry(1))


UNTOLD = {
    waits_for_nothing: "quarantined",
    leaves_a_branch_behind: "completed",
    fails_at_last: "failed",
    logs_itself: "completed",
}


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
@pytest.mark.parametrize("handler", UNTOLD, ids=lambda handler: handler.__name__)
async def test_a_log_handler_that_raises_stops_no_run(
    client: Client, handler: Any, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    hostile = client.workflow(id="hostile")(handler)
    neighbour = neighbour_of(client)

    class Refuses(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "run_id", None) == "r":
                refused.append(record.getMessage())
                raise error("the handler's")

    refused = list[str]()
    caplog.set_level(logging.INFO, "stepfold")
    refuses = Refuses()
    logging.getLogger("stepfold").addHandler(refuses)
    try:
        async with client.worker():
            run = await client.start_workflow(hostile, run_id="r")
            before = await client.start_workflow(neighbour, 1)

            async def ended() -> bool:
                return (await run.status()).state == UNTOLD[handler]

            assert await eventually(ended)
            after = await client.start_workflow(neighbour, 2)
            assert await before.result(LIMIT_S) == 2 and await after.result(LIMIT_S) == 3
    finally:
        logging.getLogger("stepfold").removeHandler(refuses)
    assert refused
    assert "recovering" not in caplog.text and "Exception in callback" not in caplog.text


def only_in_steps(value: int) -> int:
    try:
        current_step()
    except RuntimeError:
        raise asyncio.CancelledError from None
    return value


def one() -> Annotated[int, AfterValidator(only_in_steps)]:
    return 1


async def test_a_recorded_value_that_kills_its_type_stops_its_run_alone(new_log: NewLog) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> None:
        await step.run("s", one)

    async with client.worker():
        run = await client.start_workflow(workflow)
        status = await eventually(lambda: quarantined(run))
        assert status is not None and status.error is not None and "does not fit its type" in status.error.message


class Vague(NonDeterminism):
    def __str__(self) -> str:
        raise SystemExit

    @property
    def source(self) -> Any:
        raise SystemExit

    @source.setter
    def source(self, lines: Any) -> None: ...


async def test_a_disagreement_of_the_users_own_stops_its_run_alone(new_log: NewLog) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="w")
    async def workflow(ctx: Context[int], step: Step) -> int:
        if ctx.input.data == 0:
            raise Vague("no")
        if ctx.input.data == 1:  # in a file whose name is no text
            exec(compile("import asyncio; asyncio.get_running_loop().stop()", "odd\udcff.py", "exec"))
        return await step.run("s", lambda: ctx.input.data + 1)

    async with client.worker():
        runs = [await client.start_workflow(workflow, number) for number in range(3)]
        assert await runs[2].result(LIMIT_S) == 3
        for run, words in zip(runs, ["cannot be shown", r"(at odd\udcff.py:1)"], strict=False):
            status = await eventually(partial(quarantined, run))
            assert status is not None and status.error is not None and words in status.error.message


async def test_branches_that_are_left_behind_are_told(new_log: NewLog, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(driver=new_log())

    async def mail() -> None:
        await asyncio.sleep(3600)

    @client.workflow(id="w")
    async def workflow(ctx: Context, step: Step) -> str:
        left = [asyncio.create_task(step.run("mail", mail)), asyncio.create_task(step.sleep("nap", "1h"))]
        await step.wait_for_signal("go", signal="go")
        return f"done without {len(left)}"

    async with client.worker():
        run = await client.start_workflow(workflow, run_id="r")
        await run.signal("go")
        assert await run.result(LIMIT_S) == "done without 2"
        cancelled = [cast(Any, event).step_id for event in await run.history() if event.type == "step-cancelled"]
    assert cancelled == ["nap"]
    [told] = [record for record in caplog.records if "branches of its code" in record.getMessage()]
    assert "run r of w completed" in told.getMessage() and "step.run 'mail'" in told.getMessage()
    assert told.levelno == logging.WARNING and told.__dict__["run_id"] == "r"


async def test_workflows_that_are_not_known_are_named_once(new_log: NewLog, caplog: pytest.LogCaptureFixture) -> None:
    client = Client(driver=new_log())

    @client.workflow(id="known")
    async def known(ctx: Context, step: Step) -> str:
        return current_step.__name__

    async with client.worker():
        for run_id in ("a", "b", "c"):
            await client.start_workflow("unknown", run_id=run_id)
        assert await (await client.start_workflow(known)).result(LIMIT_S) == "current_step"
        await eventually(lambda: all_pending(client, "abc"))
    told = [
        record.getMessage()
        for record in caplog.records
        if "wait for a worker that knows workflow 'unknown'" in record.getMessage()
    ]
    assert len(told) == 1 and "knows 'known'" in told[0] and "namespace" in told[0]


async def all_pending(client: Client, run_ids: str) -> bool:
    states = [(await client.run(run_id).status()).waiting_on for run_id in run_ids]
    return all("a worker that knows" in words[0] for words in states)


class Gate:
    """Who comes to it in the thread of a step waits until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def wait(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.reached.set()
            self.open.wait(LIMIT_S)


GATES = [Gate() for _ in range(3)]


class SlowToTell(Exception):
    def __str__(self) -> str:
        GATES[0].wait()
        return "told at last"


def written_slowly(value: int) -> int:
    GATES[1].wait()
    return value


class SlowToCopy:
    def __deepcopy__(self, memo: object) -> SlowToCopy:
        GATES[2].wait()
        return self


def gives_slowly() -> Annotated[int, PlainSerializer(written_slowly)]:
    return 1


async def tells_slowly(ctx: Context, step: Step) -> None:
    await step.run("s", raises, SlowToTell(), retry=Retry(1))


async def writes_slowly(ctx: Context, step: Step) -> None:
    await step.run("s", gives_slowly)


async def copies_slowly(ctx: Context, step: Step) -> None:
    await step.run("s", len, [SlowToCopy()])


@pytest.mark.parametrize(("handler", "gate"), [(tells_slowly, GATES[0]), (writes_slowly, GATES[1]), (copies_slowly, GATES[2])])
async def test_what_users_classes_do_for_a_plain_step_holds_up_nobody_else(new_log: NewLog, handler: Any, gate: Gate) -> None:
    gate.reached.clear()
    gate.open.clear()
    client = Client(driver=new_log())
    slow = client.workflow(id="slow")(handler)
    neighbour = neighbour_of(client)
    async with client.worker():
        run = await client.start_workflow(slow)
        await eventually(lambda: asyncio.sleep(0, gate.reached.is_set()))
        beside = await client.start_workflow(neighbour, 1)
        assert await beside.result(LIMIT_S) == 2
        gate.open.set()
        with contextlib.suppress(WorkflowFailed):
            await run.result(LIMIT_S)
