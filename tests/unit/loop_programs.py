"""Programs for test_loop.py, written as workflows are, and what drives them: live in a random order, or by a recorded one.

As a script it prints the traces of every program as JSON. It needs nothing but the standard library and the folder of the
engine as its argument, so that any Python on the machine can run it.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import json
import math
import random
import sys
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepfold.replay.handles import Timer
    from stepfold.replay.loop import DeterministicLoop

Choose = Callable[[Sequence[str]], str]
"""Which of these deliverable names comes next."""


class Drive:
    """One run of one program on one loop, and the trace of what it did.

    The program asks for events by name, as a workflow asks for steps; `deliver` answers one of them, or fires a timer.
    """

    def __init__(self, loop_type: type[DeterministicLoop], seed: str = "run-1") -> None:
        self.trace: list[str] = []
        self.delivered: list[str] = []
        self.events: dict[str, asyncio.Future[Any]] = {}
        self.timers: dict[str, Timer] = {}
        self.loop = loop_type(seed, self._on_timer, self._on_timer_cancelled)
        self.loop.host = self.loop.host._replace(max_turns=10_000)
        self.main: asyncio.Task[Any] | None = None

    def _on_timer(self, timer: Timer) -> None:
        self.trace.append(f"timer {timer.id} {timer.delay_s}")
        self.timers[timer.id] = timer

    def _on_timer_cancelled(self, timer: Timer) -> None:
        self.trace.append(f"timer {timer.id} cancelled")
        del self.timers[timer.id]

    def log(self, *what: object) -> None:
        self.trace.append(" ".join(map(str, what)))

    def ask(self, name: str) -> asyncio.Future[Any]:
        """An awaitable that ends with its name, or, where that ends with "!", with a ValueError."""
        self.events[name] = future = self.loop.create_future()
        self.log("ask", name)
        return future

    async def step(self, name: str) -> str:
        return await self.ask(name)

    def deliverable(self) -> list[str]:
        """The open events in the order of asking, and the next timer."""
        open_events = [name for name, future in self.events.items() if not future.done()]
        next_timers = sorted(self.timers.values(), key=lambda t: (t.when(), t.number))[:1]
        return open_events + [timer.id for timer in next_timers]

    def deliver(self, name: str) -> None:
        self.delivered.append(name)
        self.log("deliver", name)
        if name.startswith("@timer"):
            timer = self.timers.pop(name)
            self.loop.now_ms = max(self.loop.now_ms, math.ceil(timer.when() * 1000))
            self.loop.fire(timer)
        elif name.endswith("!"):
            self.events[name].set_exception(ValueError(name))
        else:
            self.events[name].set_result(name)

    def start(self, program: Callable[[Drive], Coroutine[Any, Any, Any]]) -> None:
        self.main = self.loop.create_task(program(self))
        self.loop.run_until_idle()

    def run(self, program: Callable[[Drive], Coroutine[Any, Any, Any]], choose: Choose) -> list[str]:
        """Run to the end, or until nothing can be delivered; give the trace."""
        self.start(program)
        assert self.main is not None
        while not self.main.done() and (names := self.deliverable()):
            self.deliver(choose(names))
            self.loop.run_until_idle()
        self.log("end", describe(self.main))
        self.trace += [f"unhandled {u.error!r}" for u in self.loop.unhandled]
        self.trace += [f"violation {v.found}" for v in self.loop.violations]
        self.loop.abandon()
        return self.trace


def describe(task: asyncio.Future[Any]) -> str:
    if not task.done():
        return "pending"
    if task.cancelled():
        return "cancelled"
    return repr(task.exception() or task.result())


def at_random(seed: object) -> Choose:
    chance = random.Random(str(seed))
    return lambda names: names[int(chance.random() * len(names))]


def as_recorded(delivered: Sequence[str]) -> Choose:
    left = iter(delivered)
    return lambda names: next(left)


async def gather(d: Drive) -> Any:
    d.log(await asyncio.gather(d.step("a"), d.step("b!"), d.step("c"), return_exceptions=True))
    rest = [asyncio.create_task(d.step(name)) for name in ("e", "f!", "g")]
    try:
        await asyncio.gather(*rest)
    except ValueError as error:
        d.log("caught", error)
    return [describe(t) for t in rest]


async def wait_first(d: Drive) -> None:
    pending: set[asyncio.Task[str]] = {asyncio.create_task(d.step(f"s{i}"), name=f"t{i}") for i in range(12)}
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        d.log([t.get_name() for t in done], [t.get_name() for t in pending])


async def wait_all(d: Drive) -> None:
    tasks = {asyncio.create_task(d.step(f"s{i}"), name=f"t{i}") for i in range(40)}
    done, _ = await asyncio.wait(tasks)
    d.log([t.get_name() for t in done])


async def wait_for_gathered(d: Drive) -> None:
    sets = {asyncio.gather(d.step(f"a{i}"), d.step(f"b{i}")) for i in range(9)}
    done, _ = await asyncio.wait(sets)
    d.log([f.result() for f in done])
    done, pending = await asyncio.wait([asyncio.gather(d.step(f"c{i}")) for i in range(9)], timeout=3)
    d.log([f.result() for f in done], len(pending))


async def group_fails(d: Drive) -> None:
    async def careful(name: str) -> None:
        try:
            await d.step(name)
        finally:
            d.log("leave", name)

    try:
        async with asyncio.TaskGroup() as outer:
            outer.create_task(careful("a"))
            try:
                async with asyncio.TaskGroup() as inner:
                    for i in range(6):
                        inner.create_task(careful(f"in{i}"))
                    inner.create_task(careful("x!"))
                    inner.create_task(careful("y!"))
            except* ValueError as group:
                d.log("inner", group.exceptions)
            outer.create_task(careful("z!"))
    except* ValueError as group:
        d.log("outer", group.exceptions)


async def timeouts(d: Drive) -> None:
    for seconds in (1, 2, 3):
        try:
            async with asyncio.timeout(2):
                await asyncio.sleep(seconds)
                d.log("slept", seconds)
        except TimeoutError:
            d.log("late", seconds)
    try:
        async with asyncio.timeout(1) as scope:
            d.log(await d.step("a"))
            scope.reschedule(asyncio.get_running_loop().time() + 5)
            d.log(await d.step("b"))
    except TimeoutError:
        d.log("late at b")


async def same_tick(d: Drive) -> None:
    # An event and the timer that bounds it come before the code runs again: first the one, then the other.
    async def bounded(name: str) -> str:
        async with asyncio.timeout(1):
            return await asyncio.shield(d.ask(name))

    def answer(name: str) -> None:
        if not d.events[name].done():
            d.events[name].set_result(name)

    for event_first in (True, False):
        names = [f"{event_first}-{i}" for i in range(3)]
        tasks = [asyncio.create_task(bounded(name)) for name in names]
        await d.step(f"go-{event_first}")
        for name, timer in zip(names, list(d.timers.values()), strict=False):
            if event_first:
                answer(name)
                d.loop.fire(timer)
            else:
                d.loop.fire(timer)
                answer(name)
        asyncio.get_running_loop().call_later(0, d.log, "soon")
        await asyncio.wait(tasks)
        d.timers.clear()
        d.log([describe(t) for t in tasks])


async def queue(d: Drive) -> None:
    items: asyncio.Queue[str] = asyncio.Queue(maxsize=2)

    async def produce(who: str) -> None:
        for i in range(4):
            await items.put(await d.step(f"{who}{i}"))

    async def consume(who: str) -> None:
        while True:
            d.log(who, "got", await items.get())
            items.task_done()

    consumers = [asyncio.create_task(consume(f"c{i}")) for i in range(3)]
    await asyncio.gather(*(produce(w) for w in "pqr"))
    await items.join()
    for task in consumers:
        task.cancel()
    d.log(await asyncio.gather(*consumers, return_exceptions=True))


async def semaphore(d: Drive) -> None:
    limit = asyncio.Semaphore(2)

    async def limited(name: str) -> None:
        async with limit:
            d.log("in", name)
            try:
                await d.step(name)
            except ValueError:
                d.log("failed", name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(limited(n)) for n in ("a", "b!", "c", "d", "e!", "f", "g")]
        await d.step("cancel")
        tasks[-1].cancel()


async def condition(d: Drive) -> None:
    changed = asyncio.Condition()
    level = 0

    async def wait_for(n: int) -> None:
        async with changed:
            await changed.wait_for(lambda: level >= n)
            d.log("reached", n, "at", level)

    async with asyncio.TaskGroup() as group:
        for n in (3, 1, 2, 2):
            group.create_task(wait_for(n))
        for _ in range(3):
            await d.step(f"up{level}")
            async with changed:
                level += 1
                changed.notify_all()


async def barrier(d: Drive) -> None:
    gate = asyncio.Barrier(3)

    async def arrive(name: str) -> None:
        await d.step(name)
        d.log(name, "is", await gate.wait())

    await asyncio.gather(*(arrive(f"a{i}") for i in range(6)))


async def lock_and_event(d: Drive) -> None:
    lock, opened = asyncio.Lock(), asyncio.Event()

    async def enter(name: str) -> None:
        await opened.wait()
        async with lock:
            d.log("locked by", name)
            await d.step(name)

    tasks = [asyncio.create_task(enter(n)) for n in "abcd"]
    await d.step("open")
    opened.set()
    await asyncio.sleep(0)
    tasks[1].cancel()
    d.log(await asyncio.gather(*tasks, return_exceptions=True))


async def as_completed(d: Drive) -> None:
    for ready in asyncio.as_completed([asyncio.create_task(d.step(f"s{i}")) for i in range(9)]):
        d.log(await ready)
    try:
        for ready in asyncio.as_completed([asyncio.create_task(d.step(f"t{i}")) for i in range(5)], timeout=4):
            d.log(await ready)
    except TimeoutError:
        d.log("late")


async def cancels(d: Drive) -> None:
    async def stubborn(name: str) -> str:
        try:
            return await d.step(name)
        except asyncio.CancelledError:
            d.log(name, "cleans up")
            await d.step(f"{name}-clean")
            raise

    async def parent() -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(3):
                group.create_task(stubborn(f"child{i}"))
            await stubborn("self")

    family = asyncio.create_task(parent())
    kept = asyncio.create_task(d.step("kept"))
    guard = asyncio.create_task(stubborn("guard"))
    shielded = asyncio.shield(kept)
    await d.step("cancel")
    d.log(family.cancel(), guard.cancel("enough"), shielded.cancel())
    d.log(await asyncio.gather(family, guard, kept, shielded, return_exceptions=True))
    d.log(describe(family), describe(guard), describe(kept))


async def tasks_of_the_loop(d: Drive) -> None:
    spawned = [asyncio.create_task(d.step(f"s{i}")) for i in range(30)]
    main = asyncio.current_task()
    assert main is not None
    d.log(main.get_name(), asyncio.get_running_loop() is d.loop, [t.get_name() for t in asyncio.all_tasks()])
    await asyncio.wait(spawned)
    d.log([t.get_name() for t in asyncio.all_tasks()])


async def contexts(d: Drive) -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")

    async def child(name: str) -> None:
        d.log(name, "born to", who.get())
        who.set(name)
        await d.step(name)
        d.log(name, "is", who.get())

    who.set("main")
    context = contextvars.copy_context()
    context.run(who.set, "given")
    tasks = [asyncio.create_task(child("a")), asyncio.create_task(child("b"), context=context)]
    asyncio.get_running_loop().call_soon(lambda: d.log("callback of", who.get()))
    await asyncio.gather(*tasks)
    d.log(who.get(), context[who])


async def left_generator(d: Drive) -> None:
    async def numbers() -> AsyncIterator[int]:
        try:
            for i in range(9):
                await d.step(f"n{i}")
                yield i
        finally:
            d.log("generator ends in", type(asyncio.get_running_loop()).__name__)
            await d.step("close")
            d.log("closed")

    async for n in numbers():
        d.log(n)
        if n == 2:
            break
    await d.step("after")
    await d.step("last")


async def refusals(d: Drive) -> None:
    async def attempt(what: Callable[[], Awaitable[Any]]) -> None:
        try:
            await what()
        except Exception as error:  # noqa: BLE001  # as careless code would
            d.log(type(error).__name__, ("step.run" in str(error), "create_task" in str(error)))

    async def complete_coroutines() -> None:
        for ready in asyncio.as_completed([d.step("never")]):
            await ready

    await attempt(lambda: asyncio.to_thread(print))
    await attempt(complete_coroutines)
    foreign = asyncio.new_event_loop()
    await attempt(foreign.create_future)
    foreign.close()
    await attempt(Oddity)
    coro = d.step("never")
    await attempt(lambda: asyncio.Task(coro))
    coro.close()


class Oddity:
    """Awaitable in another framework."""

    def __await__(self) -> Any:
        yield "wait for me"


async def unhandled(d: Drive) -> None:
    asyncio.get_running_loop().call_soon(lambda: int("x"))
    forgotten = asyncio.create_task(d.step("f!"))
    await asyncio.wait([forgotten])
    del forgotten
    for i in range(40):  # the loop lets go of ended tasks now and then
        await asyncio.create_task(d.step(f"s{i}"))


async def wait_for(d: Drive) -> None:
    for seconds in (1, 2, 3):
        try:
            await asyncio.wait_for(asyncio.sleep(seconds), 2)
            d.log("slept", seconds)
        except TimeoutError:
            d.log("late", seconds)
    task = asyncio.create_task(d.step("a"))
    try:
        d.log(await asyncio.wait_for(task, 5))
    except TimeoutError:
        d.log("late", describe(task))
    done, _ = await asyncio.wait([asyncio.create_task(d.step(f"s{i}")) for i in range(20)])
    d.log([t.get_name() for t in done])


async def cancel_in_the_tick(d: Drive) -> None:
    for turns in range(5):
        answer = d.loop.create_future()
        waiting = asyncio.create_task(asyncio.wait_for(asyncio.shield(answer), 5))
        await asyncio.sleep(0)
        answer.set_result("answer")
        for _ in range(turns):
            await asyncio.sleep(0)
        d.log(turns, "cancelled" if waiting.cancel() else "too late")
        await asyncio.wait([waiting])
        d.log(describe(waiting))


SAME_EVERYWHERE = (
    gather, wait_first, wait_all, wait_for_gathered, group_fails, timeouts, same_tick, queue, semaphore, condition, barrier,
    lock_and_event, as_completed, cancels, tasks_of_the_loop, contexts, left_generator, refusals, unhandled,
)  # fmt: skip
# 3.11's `wait_for` runs a coroutine in a task of its own, which takes a number and a turn, and prefers a result to a
# cancellation that came in the same turn; later versions rest on `asyncio.timeout`.
SAME_PER_VERSION = (wait_for, cancel_in_the_tick)


def main(engine: str) -> None:
    package = types.ModuleType("stepfold")  # without its __init__, which needs more than the standard library
    package.__path__ = [engine]
    sys.modules["stepfold"] = package
    loop_type = importlib.import_module("stepfold.replay.loop").DeterministicLoop
    found = {
        program.__name__: [Drive(loop_type).run(program, at_random(seed)) for seed in range(5)]
        for program in SAME_EVERYWHERE + SAME_PER_VERSION
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
