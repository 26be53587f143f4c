"""Programs that do what nobody should, and what may come of each: nothing of it may reach a neighbour.

The node ["hostile", kind, variant, data] of a program does one of these; `allowed` and `ends` say what may come of it.
Whatever they share beyond their run lies in their host, that is, in one life of a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple, Protocol

from stepfold import Callback, CallbackTimedOut, Retry, Step, StepFailed, current_step
from stepfold.errors import ConfigError, ErrorInfo, LogUnavailable, NonDeterminism, RunAlreadyExists

Node = list[Any]
COMPLETED, FAILED, QUARANTINED = "completed", "failed", "quarantined"
TWICE = Retry(2, backoff=0.05, jitter=False)
FOR_EVER = 1000
"""As a number of deaths."""


class Host(Protocol):
    """The process in which programs run. `shared`: what runs share by mistake."""

    name: str
    shared: dict[str, Any]

    def block(self, seconds: float) -> None: ...
    def die(self, run_id: str, times: int) -> None: ...
    def step_started(self, run_id: str, step_id: str, attempt: int, args: Any, heartbeat: Any) -> None: ...
    def step_beat(self, run_id: str, step_id: str, attempt: int, details: Any) -> None: ...
    def step_ended(self, run_id: str, step_id: str, attempt: int, outcome: Any) -> None: ...
    def asked(self, callback_id: str, answers: list[list[Any]]) -> None: ...


class Machine(Protocol):
    """What interprets a program in one replay of one run."""

    host: Any
    ctx: Any


# -- errors that cannot be shown, and others that mean something to somebody


class Odd(BaseException):
    """No Exception."""


class Unshowable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")

    __repr__ = __str__


class UnshowableBadly(Exception):
    def __str__(self) -> str:
        raise Odd

    __repr__ = __str__


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # pyright: ignore[reportReturnType]  # noqa: PLE0307  # that is the point


class NoTraceback(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__traceback__":
            raise Unshowable
        return super().__getattribute__(name)


class NoCause(Exception):
    def __getattribute__(self, name: str) -> Any:
        if name == "__cause__":
            raise Odd
        return super().__getattribute__(name)


class Nameless(Exception):
    """Of a module that has no name."""


Nameless.__module__ = 5  # pyright: ignore[reportAttributeAccessIssue]  # that is the point
Nameless.__qualname__ = "\ud800"


def _syntax() -> BaseException:
    error: Any = SyntaxError("odd")
    error.filename, error.lineno, error.offset, error.text = "a", "x", [], 5
    return error


def _in_circles() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def _noted() -> BaseException:
    error = ValueError("noted")
    vars(error)["__notes__"] = [Unshowable(), 5]
    return error


def _nested() -> BaseException:
    error: Exception = Unshowable()
    for _ in range(200):
        inner: list[Exception] = [error]
        error = ExceptionGroup("nested", inner)
    return error


def _deep() -> BaseException:
    def down() -> None:
        down()

    try:
        down()
    except RecursionError as error:
        return error
    raise AssertionError


ERRORS: tuple[Callable[[], BaseException], ...] = (
    Unshowable,
    UnshowableBadly,
    NoText,
    NoTraceback,
    NoCause,
    Nameless,
    _syntax,
    _in_circles,
    _noted,
    _nested,
    _deep,
    Odd,
    SystemExit,
    GeneratorExit,
    StopIteration,
    StopAsyncIteration,
    MemoryError,
    asyncio.CancelledError,
    asyncio.InvalidStateError,
    TimeoutError,
    KeyboardInterrupt,
    lambda: BaseExceptionGroup("group", [Unshowable(), ValueError("no"), _syntax()]),
    lambda: BaseExceptionGroup("group", [Odd(), SystemExit(3)]),
    lambda: ValueError("\ud800 \x00 \x1b[2J"),
    lambda: ValueError("x" * 3_000_000),
    lambda: ConfigError("of the code's own"),
    lambda: LogUnavailable("of the code's own"),
    lambda: RunAlreadyExists("of the code's own"),
    lambda: NonDeterminism("of the code's own"),
    lambda: StepFailed("of the code's own", 1, ErrorInfo("x", "y")),
)


def error(variant: int) -> BaseException:
    return ERRORS[variant]()


# -- values that a record cannot hold, or that come back as something else


def _deeply(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def _within_itself() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


class _Raises:
    def __getattr__(self, name: str) -> Any:
        raise Unshowable

    def __iter__(self) -> Any:
        raise Odd


VALUES: tuple[Callable[[], Any], ...] = (
    object,
    _Raises,
    lambda: float("nan"),
    lambda: [float("inf")],
    lambda: {"a": float("-inf")},
    lambda: _deeply(180),
    lambda: _deeply(5_000),
    _within_itself,
    lambda: "x" * 2_000_000,
    lambda: "\ud800",
    lambda: {"\ud800": 1},
    lambda: 2**53 + 1,
    lambda: 2**63,
    lambda: -(2**70),
    lambda: {1: "one", "1": "two"},
    lambda: b"\xff\xfe",
    lambda: Decimal("1.10"),
    lambda: (n for n in "abc"),
    asyncio.Event,
    lambda: ValueError,
    lambda: sys,
)


def same(given: Any, got: Any) -> bool:
    """Whether what came back is what was given. What JSON writes as text comes back so where no type says otherwise."""
    if isinstance(given, (bytes, Decimal)):
        return isinstance(got, str)
    try:
        return bool(given == got) and type(given) is type(got)
    except Exception:  # noqa: BLE001  # some of them cannot be compared: those must not come back
        return False


# -- times


async def _sleep(machine: Any, step: Step, seconds: Any) -> None:
    await step.sleep("h-sleep", seconds)


async def _sleep_plainly(machine: Any, step: Step, seconds: Any) -> None:
    await asyncio.sleep(seconds)


async def _sleep_until(machine: Any, step: Step, when: Any) -> None:
    await step.sleep_until("h-sleep", when)


async def _wait(machine: Any, step: Step, timeout: Any) -> None:
    await step.wait_for_signal("h-wait", signal="never", timeout=timeout)


async def _timeout(machine: Any, step: Step, delay: Any) -> None:
    async with asyncio.timeout(delay):
        await step.wait_for_signal("h-wait", signal="never")


SOON, NEVER = True, False
TIMES: tuple[tuple[Callable[..., Awaitable[None]], Any, bool], ...] = (
    (_sleep, 0, SOON),
    (_sleep, -1, SOON),
    (_sleep, float("inf"), NEVER),
    (_sleep, float("nan"), SOON),
    (_sleep, sys.maxsize, NEVER),
    (_sleep, "1000000w", NEVER),
    (_sleep, timedelta.max, NEVER),
    (_sleep_plainly, 0, SOON),
    (_sleep_plainly, -1e300, SOON),
    (_sleep_plainly, float("inf"), NEVER),
    (_sleep_plainly, sys.maxsize, NEVER),
    (_sleep_plainly, 1e300, NEVER),
    (_sleep_until, datetime.max.replace(tzinfo=UTC), NEVER),
    (_sleep_until, datetime.min.replace(tzinfo=UTC), SOON),
    (_wait, 0, SOON),
    (_wait, sys.maxsize, NEVER),
    (_timeout, 0, SOON),
    (_timeout, -5, SOON),
    (_timeout, sys.maxsize, NEVER),
)
IDS = ("", "\x00", "x" * 10_000, "\ud800", "@timer", "a#2", "a/b", " ", "\u202e", 5, None, b"id")


# -- what is done in a workflow


async def _raises(machine: Any, step: Step, variant: int, data: Any) -> Any:
    raise error(variant)


async def _raises_in_a_branch(machine: Any, step: Step, variant: int, data: Any) -> Any:
    async def branch() -> None:
        await step.sleep("h-nap", 0.01)
        raise error(variant)

    async with asyncio.TaskGroup() as group:
        group.create_task(branch())
        group.create_task(step.wait_for_signal("h-wait", signal="never"))


async def _leaves(machine: Any, step: Step, variant: int, data: Any) -> Any:
    async def raises() -> None:
        raise error(variant)

    async def shielded() -> None:
        with step.shield():
            await step.sleep("h-shielded", 0.01)

    left = [step.run("h-left", machine.hostile.returns, 0), step.sleep("h-slept", "1h"), raises(), shielded()]
    machine.host.shared.setdefault("left", []).extend(asyncio.ensure_future(one) for one in left)
    return ["survived"]


async def _swallows(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """Until it gets what it waits for, whatever is thrown at it."""
    while True:
        try:
            await SWALLOWED[variant](machine, step)
        except BaseException:  # noqa: BLE001  # that is the point
            continue
        return ["survived"]


async def _waited(machine: Any, step: Step) -> None:
    await step.wait_for_signal("h-wait", signal="never", timeout=20)


async def _run(machine: Any, step: Step) -> None:
    await step.run("h-returns", machine.hostile.returns, 0)


async def _gathered(machine: Any, step: Step) -> None:
    await asyncio.gather(step.sleep("h-one", 5), step.sleep("h-other", 6))


async def _nap(machine: Any, step: Step) -> None:
    await step.sleep("h-nap", 20)


async def _nap_plainly(machine: Any, step: Step) -> None:
    await asyncio.sleep(20)


async def _event(machine: Any, step: Step) -> None:
    await asyncio.Event().wait()


async def _signal(machine: Any, step: Step) -> None:
    await step.wait_for_signal("h-wait", signal="never")


SWALLOWED: tuple[Callable[..., Awaitable[None]], ...] = (_waited, _run, _gathered, _nap, _nap_plainly, _event, _signal)


async def _spins(machine: Any, step: Step, variant: int, data: Any) -> Any:
    while True:
        if variant == 0:
            await asyncio.sleep(0)
        elif variant == 1:
            await asyncio.create_task(asyncio.sleep(0))
        else:
            with contextlib.suppress(BaseException):
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()


async def _blocks(machine: Any, step: Step, variant: int, data: Any) -> Any:
    machine.host.block((0.1, 3, 40)[variant])
    return ["survived"]


async def _returns(machine: Any, step: Step, variant: int, data: Any) -> Any:
    return ["returned", VALUES[variant]()]


async def _waits(machine: Any, step: Step, variant: int, data: Any) -> Any:
    if variant == 0:
        await asyncio.Event().wait()
    elif variant == 1:
        await asyncio.gather(asyncio.get_running_loop().create_future(), step.run("h-returns", machine.hostile.returns, 0))
    elif variant == 2:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        await queue.get()
    else:
        # Not for ever: as many as there are slots for steps would be the end of the neighbours'.
        with contextlib.suppress(StepFailed):
            await step.run("h-never", machine.hostile.never, 0, retry=TWICE, timeout=600)
        return ["survived"]
    return None


async def _shares(machine: Any, step: Step, variant: int, data: Any) -> Any:
    shared = machine.host.shared
    if variant == 0:
        async with shared.setdefault("lock", asyncio.Lock()):
            await step.sleep("h-nap", 0.5)
    elif variant == 1:
        event = shared.setdefault("event", asyncio.Event())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), 0.3)
        event.set()
    elif variant == 2:
        future = shared.setdefault("future", asyncio.get_running_loop().create_future())
        await asyncio.wait([future], timeout=1)
        if not future.done():
            future.set_result(None)
    elif variant == 3:
        seen = shared.setdefault("list", [])
        seen.append(machine.ctx.run_id)
        await step.run(f"h-shared-{len(seen)}", machine.hostile.returns, 0)
    else:
        queue = shared.setdefault("queue", asyncio.Queue())
        queue.put_nowait(1)
        await step.sleep("h-nap", 0.1)
        await queue.get()
    return ["survived"]


async def _changes_its_input(machine: Any, step: Step, variant: int, data: Any) -> Any:
    seen = copy.deepcopy(data)
    data.append("changed")
    await step.run("h-returns", machine.hostile.returns, 0)
    data.clear()
    return ["saw", seen]


async def _changes_arguments(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """Before the step can have begun, and while it is tried again."""
    argument = [{"n": 1}]
    running = asyncio.create_task(step.run("h-changes", machine.hostile.changes, argument, retry=TWICE))
    await asyncio.sleep(0)
    argument[0]["n"] = 2
    got = await running
    seen = copy.deepcopy(got)
    got.append("changed")
    await step.sleep("h-nap", 0.01)
    return ["saw", seen]


async def _dies(machine: Any, step: Step, variant: int, data: Any) -> Any:
    await step.run("h-returns", machine.hostile.returns, 0)
    machine.host.die(machine.ctx.run_id, (1, 2, FOR_EVER)[variant])
    return ["survived"]


async def _sleeps(machine: Any, step: Step, variant: int, data: Any) -> Any:
    do, seconds, _ = TIMES[variant]
    try:
        await do(machine, step, seconds)
    except (ValueError, OverflowError, TimeoutError):
        return ["refused"]
    return ["survived"]


async def _names(machine: Any, step: Step, variant: int, data: Any) -> Any:
    name: Any = IDS[variant]
    try:
        await step.run(name, machine.hostile.returns, 0)
        async with step.scope(name) as inner:
            await inner.wait_for_signal("h-wait", signal=name, timeout=1)
    except (ValueError, TypeError):
        return ["refused"]
    return ["survived"]


async def _sends(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """Signals to nobody, and such as cannot be written."""
    try:
        run_id: Any = IDS[variant % len(IDS)]
        await step.send_signal("h-send", signal="x", data=VALUES[variant](), run_id=run_id)
    except (ValueError, TypeError, StepFailed):
        return ["refused"]
    return ["survived"]


async def _cancels_itself(machine: Any, step: Step, variant: int, data: Any) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel("by itself")
    if variant == 0:
        await step.sleep("h-nap", 5)
    else:
        with contextlib.suppress(asyncio.CancelledError):
            await step.sleep("h-nap", 5)
        await step.sleep("h-nap", 0.1)
    return ["survived"]


# -- callbacks

ANSWERS: list[list[Any]] = [[0, "forged", "client"], [0, "list", "client"], [500, "list", "twice"], [3_000, "list", "inbox"]]
GOOD = [["got", [f"good {number}"]] for number in (1, 2, 3)]
SILENCE = ["silence"]


async def _heard(callback: Callback) -> list[Any]:
    """What came of it. The data are a list, which whoever gets it may change."""
    try:
        return ["got", await callback]
    except CallbackTimedOut:
        return SILENCE


async def _awaits_twice(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """One after the other, in two tasks, or with a task that gives up between."""
    callback = await step.callback("h-callback", timeout=20)
    machine.host.asked(callback.id, ANSWERS)
    if variant == 0:
        return ["heard", await _heard(callback), await _heard(callback)]
    if variant == 1:
        return ["heard", *await asyncio.gather(_heard(callback), _heard(callback))]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await _heard(callback)
    return ["heard", await _heard(callback), await _heard(callback)]


async def _drops_a_callback(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """Before it is durable, while its id is handed out or nobody has answered, or while a task of its own waits."""
    if variant == 0:
        asking = asyncio.ensure_future(step.callback("h-callback", timeout="1h"))
        await asyncio.sleep(0)
    elif variant == 1:
        asking = asyncio.ensure_future(step.wait_for_callback("h-callback", machine.hostile.hands_out, timeout="1h"))
        await step.sleep("h-wait", 0.2)
    else:
        callback = await step.callback("h-callback", timeout="1h")
        machine.host.asked(callback.id, ANSWERS)
        asking = asyncio.ensure_future(_heard(callback))
        del callback
        await step.sleep("h-wait", 0.2)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await step.sleep("h-nap", 1)
    return ["survived"]


async def _never_awaits(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """The answers come while the run goes on, or when it has ended."""
    callback = await step.callback("h-callback", timeout=None if variant else "1h", heartbeat=None if variant else 1)
    machine.host.asked(callback.id, ANSWERS)
    await step.sleep("h-nap", 1 if variant == 2 else 0)
    return ["survived"]


async def _hands_its_id_on(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """To the next run in this process, which has it answered; it does the same for the one before."""
    callback = await step.callback("h-callback", timeout=20)
    ids = machine.host.shared.setdefault("ids", [])
    for other in ids[-1:]:
        machine.host.asked(other, ANSWERS)
    if callback.id not in ids:
        ids.append(callback.id)
    return ["heard", await _heard(callback)]


async def _changes_its_answer(machine: Any, step: Step, variant: int, data: Any) -> Any:
    """And waits, so that a replay may come between: that gives the answer as it was."""
    callback = await step.callback("h-callback", timeout=20)
    machine.host.asked(callback.id, ANSWERS)
    answer = await _heard(callback)
    seen = copy.deepcopy(answer)
    if answer[0] == "got":
        answer[1].append("changed")
    await step.run("h-returns", machine.hostile.returns, 0)
    await step.sleep("h-nap", 5)
    return ["heard", seen]


async def _step(machine: Any, step: Step, name: str, variant: int, timeout: float | None = None) -> Any:
    work = getattr(machine.hostile, name)
    try:
        got = await step.run(f"h-{name}", work, variant, retry=TWICE, timeout=timeout)
    except StepFailed:
        return ["refused"]
    return ["got", got]


async def _step_raises(machine: Any, step: Step, variant: int, data: Any) -> Any:
    return await _step(machine, step, "raises", variant)


async def _plain_step_raises(machine: Any, step: Step, variant: int, data: Any) -> Any:
    return await _step(machine, step, "raises_plainly", variant)


async def _step_returns(machine: Any, step: Step, variant: int, data: Any) -> Any:
    result = await _step(machine, step, "unwritable", variant)
    if result[0] == "got":
        return ["same" if same(VALUES[variant](), result[1]) else "changed", repr(result[1])[:200]]
    return result


async def _step_swallows(machine: Any, step: Step, variant: int, data: Any) -> Any:
    return await _step(machine, step, "swallows", variant, timeout=1)


async def _step_blocks(machine: Any, step: Step, variant: int, data: Any) -> Any:
    return await _step(machine, step, "blocks", variant)


async def _step_dies(machine: Any, step: Step, variant: int, data: Any) -> Any:
    return await _step(machine, step, "dies", variant)


async def _step_beats(machine: Any, step: Step, variant: int, data: Any) -> Any:
    return await _step(machine, step, "beats", variant)


class Steps:
    """The hostile step functions of one process."""

    def __init__(self, host: Host) -> None:
        def begin(*args: Any) -> Any:
            now = current_step()
            host.step_started(now.run_id, now.step_id, now.attempt, copy.deepcopy(args), copy.deepcopy(now.last_heartbeat))
            return now

        async def returns(variant: int) -> list[str]:
            begin(variant)
            return ["fine"]

        async def raises(variant: int) -> None:
            begin(variant)
            await asyncio.sleep(0.001)
            raise error(variant)

        def raises_plainly(variant: int) -> None:
            begin(variant)
            raise error(variant)

        async def unwritable(variant: int) -> Any:
            begin(variant)
            return VALUES[variant]()

        async def changes(argument: list[Any]) -> list[Any]:
            now = begin(argument)
            seen = copy.deepcopy(argument)
            argument.append("changed")
            argument[0]["n"] = 3
            if now.attempt == 1:
                raise ValueError("again")
            return seen

        async def swallows(variant: int) -> str:
            begin(variant)
            for _ in range(variant + 1):
                with contextlib.suppress(BaseException):
                    await asyncio.sleep(50)
            return "swallowed"

        async def hands_out(callback_id: str) -> None:
            begin(callback_id)
            host.asked(callback_id, ANSWERS)

        async def never(variant: int) -> None:
            begin(variant)
            await asyncio.get_running_loop().create_future()

        async def blocks(variant: int) -> str:
            begin(variant)
            host.block((0.1, 3, 40)[variant])
            await asyncio.sleep(0)
            return "blocked"

        async def dies(variant: int) -> str:
            now = begin(variant)
            host.die(now.run_id, (1, 3, FOR_EVER)[variant])
            return "alive"

        async def beats(variant: int) -> str:
            now = begin(variant)
            details: Any = [now.attempt, "begun"]
            host.step_beat(now.run_id, now.step_id, now.attempt, copy.deepcopy(details))
            now.heartbeat(details)
            details.append("changed")
            with contextlib.suppress(TypeError, ValueError):
                now.heartbeat(VALUES[variant]())
                details = VALUES[variant]()
                host.step_beat(now.run_id, now.step_id, now.attempt, details)
            if now.attempt == 1:
                raise ValueError("again")
            return "beaten"

        self.returns, self.raises, self.raises_plainly, self.unwritable, self.changes = (
            returns,
            raises,
            raises_plainly,
            unwritable,
            changes,
        )
        self.swallows, self.never, self.blocks, self.dies, self.beats = swallows, never, blocks, dies, beats
        self.hands_out = hands_out


# -- all of them


class Kind(NamedTuple):
    """`variants`: how many; `ends`: how a run may end because of it; `values`: what the node may give otherwise;
    `lingers`: whether its run may wait for ever, in which case it is cancelled in the end."""

    do: Callable[[Any, Step, int, Any], Awaitable[Any]]
    variants: int
    ends: tuple[str, ...] = ()
    values: tuple[str, ...] = ("survived",)
    lingers: bool = False


ANYHOW = (FAILED, QUARANTINED)
KINDS: dict[str, Kind] = {
    "raises": Kind(_raises, len(ERRORS), ANYHOW, ()),
    "raises in a branch": Kind(_raises_in_a_branch, len(ERRORS), ANYHOW, (), lingers=True),
    "leaves": Kind(_leaves, len(ERRORS), ANYHOW),
    "swallows": Kind(_swallows, len(SWALLOWED), (QUARANTINED,), lingers=True),
    "spins": Kind(_spins, 3, (QUARANTINED,), ()),
    "blocks": Kind(_blocks, 3, (QUARANTINED,)),
    "returns": Kind(_returns, len(VALUES), (FAILED,), ("returned",)),
    "waits": Kind(_waits, 4, ANYHOW, lingers=True),
    "shares": Kind(_shares, 5, ANYHOW, lingers=True),
    "changes its input": Kind(_changes_its_input, 1, (), ("saw",)),
    "changes arguments": Kind(_changes_arguments, 1, (), ("saw",)),
    "dies": Kind(_dies, 3, (QUARANTINED,)),
    "sleeps": Kind(_sleeps, len(TIMES), (FAILED,), ("survived", "refused"), lingers=True),
    "names": Kind(_names, len(IDS), (FAILED,), ("survived", "refused")),
    "sends": Kind(_sends, len(VALUES), (FAILED,), ("survived", "refused")),
    "cancels itself": Kind(_cancels_itself, 2, (FAILED,)),
    "awaits twice": Kind(_awaits_twice, 3, (), ("heard",)),
    "drops a callback": Kind(_drops_a_callback, 3),
    "never awaits": Kind(_never_awaits, 3),
    "hands its id on": Kind(_hands_its_id_on, 1, (), ("heard",)),
    "changes its answer": Kind(_changes_its_answer, 1, (), ("heard",)),
    "step raises": Kind(_step_raises, len(ERRORS), (), ("refused",)),
    "plain step raises": Kind(_plain_step_raises, len(ERRORS), (), ("refused",)),
    "step returns": Kind(_step_returns, len(VALUES), (), ("refused", "same")),
    "step swallows": Kind(_step_swallows, 3, (), ("refused", "got")),
    "step blocks": Kind(_step_blocks, 3, (QUARANTINED,), ("got", "refused")),
    "step dies": Kind(_step_dies, 3, (QUARANTINED,), ("got",)),
    "step beats": Kind(_step_beats, len(VALUES), (), ("got", "refused")),
}


def generate(random: Random) -> Node:
    """One of them."""
    kind = random.choice([*KINDS])
    return ["hostile", kind, random.randrange(KINDS[kind].variants), [1, [2]]]


def allowed(node: Node, value: Any) -> bool:
    """Whether it may have given this."""
    _, kind, variant, data = node
    if value[0] not in KINDS[kind].values:
        return False
    if kind == "returns":
        return same(VALUES[variant](), value[1])
    if kind == "changes its input":
        return value[1] == data
    if kind == "changes arguments":
        return value[1] == [{"n": 1}]
    if value[0] == "heard":
        return value[1] in (*GOOD, SILENCE) and all(heard == value[1] for heard in value[2:])
    if kind == "sleeps":
        return value[0] == "refused" or TIMES[variant][2] is SOON
    return True
