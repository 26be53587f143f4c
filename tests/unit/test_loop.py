"""The deterministic loop: the same order in every process and version, nothing real inside, and it leaves no trace behind."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import json
import linecache
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import loop_programs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interpreters import THIS_VERSION, VERSIONS, interpreters, recorded
from loop_programs import Drive, as_recorded, at_random, describe

import stepfold.replay.loop
from stepfold.errors import NonDeterminism
from stepfold.replay.futures import DeterministicTask
from stepfold.replay.handles import Timer
from stepfold.replay.loop import HOST, DeterministicLoop

PROGRAMS = Path(loop_programs.__file__)
ENGINE = Path(stepfold.replay.loop.__file__).parents[1]
HASH_SEEDS = ("0", "1", "2", "3", "4")

Trace = dict[str, list[list[str]]]
"""What `loop_programs` prints: by program, one trace for each of its random orders."""


@pytest.fixture(scope="module")
def pythons() -> dict[str, str]:
    return interpreters()


@pytest.fixture(scope="module")
def traces_of(pythons: dict[str, str]) -> Callable[[str], list[bytes]]:
    """What a version prints for all programs, once for every hash seed."""
    known: dict[str, list[bytes]] = {}

    def run(version: str) -> list[bytes]:
        said = [recorded(version, f"loop-{seed}") for seed in HASH_SEEDS]
        if version not in pythons and None in said:
            pytest.skip(f"no Python {version} here")
        if version not in pythons:
            known[version] = [one for one in said if one is not None]
        elif version not in known:
            command = [pythons[version], str(PROGRAMS), str(ENGINE)]
            known[version] = [
                subprocess.run(command, env={"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, check=True).stdout
                for seed in HASH_SEEDS
            ]
        return known[version]

    return run


def test_ci_compares_at_least_two_versions(pythons: dict[str, str]) -> None:
    if os.environ.get("CI") != "true" and len(pythons) < 2:
        pytest.skip("no other Python here")
    assert len(pythons) >= 2, "install another of 3.11, 3.12 and 3.13 to compare with"


@pytest.mark.parametrize("version", VERSIONS)
def test_same_order_under_every_hash_seed(version: str, traces_of: Callable[[str], list[bytes]]) -> None:
    first, *others = traces_of(version)
    assert others == [first] * (len(HASH_SEEDS) - 1)


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != THIS_VERSION])
def test_same_order_in_every_version(version: str, traces_of: Callable[[str], list[bytes]]) -> None:
    ours: Trace = json.loads(traces_of(THIS_VERSION)[0])
    theirs: Trace = json.loads(traces_of(version)[0])
    for program in loop_programs.SAME_EVERYWHERE:
        assert theirs[program.__name__] == ours[program.__name__]


@pytest.mark.parametrize("program", [*loop_programs.SAME_EVERYWHERE, *loop_programs.SAME_PER_VERSION], ids=lambda p: p.__name__)
@pytest.mark.parametrize("seed", range(5))
def test_replay_in_recorded_order_repeats_the_run(program: Callable[[Drive], Coroutine[Any, Any, Any]], seed: int) -> None:
    live = Drive(DeterministicLoop, "run-1")
    live.run(program, at_random(seed))
    replayed = Drive(DeterministicLoop, "a fork of run-1")
    replayed.run(program, as_recorded(live.delivered))
    assert replayed.trace == live.trace


# Random programs: trees of ways to combine steps.

Program = tuple[Any, ...]


def programs() -> st.SearchStrategy[Program]:
    leaf = st.one_of(
        st.just(("step",)), st.just(("fail",)), st.tuples(st.just("sleep"), st.sampled_from([0, 0.5, 1, 2])), st.just(("turn",))
    )

    def combine(inner: st.SearchStrategy[Program]) -> st.SearchStrategy[Program]:
        several = st.lists(inner, min_size=1, max_size=5).map(tuple)
        return st.one_of(
            st.tuples(
                st.sampled_from(["sequence", "gather", "group", "race", "completed", "two at a time", "bystander"]), several
            ),
            st.tuples(st.just("timeout"), st.sampled_from([0.5, 1, 2]), inner),
            st.tuples(st.just("wait for"), st.sampled_from([0.5, 1, 2]), inner),
            st.tuples(st.just("shield"), inner),
        )

    return st.recursive(leaf, combine, max_leaves=12)


async def interpret(d: Drive, program: Program, path: str) -> None:
    kind, *rest = program
    d.log("enter", path, kind)
    try:
        await _interpret(d, kind, rest, path)
    except BaseException as error:
        d.log("leave", path, type(error).__name__)
        raise
    d.log("leave", path)


async def _interpret(d: Drive, kind: str, rest: list[Any], path: str) -> None:
    def parts() -> Iterator[Coroutine[Any, Any, None]]:
        return (interpret(d, part, f"{path}.{i}") for i, part in enumerate(rest[-1]))

    def tasks() -> list[asyncio.Task[None]]:
        return [asyncio.create_task(part) for part in parts()]

    match kind:
        case "step":
            await d.step(path)
        case "fail":
            await d.step(f"{path}!")
        case "turn":
            await asyncio.sleep(0)
        case "sleep":
            await asyncio.sleep(rest[0])
        case "sequence":
            for part in parts():
                try:
                    await part
                except ValueError:
                    d.log("next", path)
        case "gather":
            d.log(path, await asyncio.gather(*parts(), return_exceptions=True))
        case "group":
            try:
                async with asyncio.TaskGroup() as group:
                    for part in parts():
                        group.create_task(part)
            except* (ValueError, TimeoutError) as several:
                d.log(path, several.exceptions)
        case "race":
            done, pending = await asyncio.wait(set(tasks()), return_when=asyncio.FIRST_COMPLETED)
            for task in pending:
                task.cancel()
            d.log(path, [describe(t) for t in done], len(pending))
            await asyncio.gather(*done, *pending, return_exceptions=True)
        case "completed":
            for ready in asyncio.as_completed(tasks()):
                try:
                    await ready
                except (ValueError, TimeoutError) as error:
                    d.log(path, error)
        case "two at a time":
            slots = asyncio.Semaphore(2)

            async def limited(i: int, part: Program) -> None:
                async with slots:
                    await interpret(d, part, f"{path}.{i}")

            limits = [limited(i, part) for i, part in enumerate(rest[-1])]
            d.log(path, await asyncio.gather(*limits, return_exceptions=True))
        case "bystander":
            tasks()  # nobody waits for them
        case "timeout":
            async with asyncio.timeout(rest[0]):
                await interpret(d, rest[1], f"{path}.0")
        case "wait for":
            await asyncio.wait_for(interpret(d, rest[1], f"{path}.0"), rest[0])
        case _:
            await asyncio.shield(interpret(d, rest[0], f"{path}.0"))


@given(program=programs(), order=st.randoms(use_true_random=False))
def test_any_interleaving_replays_to_the_same_trace(program: Program, order: Any) -> None:
    async def workflow(d: Drive) -> None:
        await interpret(d, program, "0")

    live = Drive(DeterministicLoop)
    live.run(workflow, order.choice)
    replayed = Drive(DeterministicLoop)
    replayed.run(workflow, as_recorded(live.delivered))
    assert replayed.trace == live.trace
    assert not live.loop.violations


# Timers.


def drive(program: Callable[[Drive], Coroutine[Any, Any, Any]]) -> Drive:
    driven = Drive(DeterministicLoop)
    driven.start(program)
    return driven


def test_a_timer_cancelled_before_the_loop_is_idle_costs_nothing() -> None:
    async def program(d: Drive) -> None:
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        await asyncio.sleep(3)

    assert drive(program).trace == ["timer @timer#2 3.0"]


def test_a_reported_timer_says_when_it_is_not_wanted_any_more() -> None:
    async def program(d: Drive) -> None:
        async with asyncio.timeout(5):
            await d.step("a")

    d = drive(program)
    timer = d.timers["@timer"]
    d.deliver("a")
    d.loop.run_until_idle()
    assert d.trace == ["ask a", "timer @timer 5.0", "deliver a", "timer @timer cancelled"]
    assert timer.cancelled()
    d.loop.fire(timer)
    timer.cancel()
    d.loop.run_until_idle()
    assert d.trace[4:] == []


def test_a_fired_timer_fires_once_and_its_cancellation_is_nobodys_business() -> None:
    async def program(d: Drive) -> None:
        asyncio.get_running_loop().call_later(2, d.log, "rang")

    d = drive(program)
    timer = d.timers["@timer"]
    for _ in range(2):
        d.loop.fire(timer)
        d.loop.run_until_idle()
    timer.cancel()
    d.loop.run_until_idle()
    assert d.trace == ["timer @timer 2.0", "rang"]


def test_a_fired_timer_can_still_be_cancelled_by_what_runs_before_it() -> None:
    async def program(d: Drive) -> None:
        timer = asyncio.get_running_loop().call_later(2, d.log, "rang")
        await d.step("a")
        timer.cancel()

    d = drive(program)
    d.deliver("a")
    d.loop.fire(d.timers["@timer"])
    d.loop.run_until_idle()
    assert "rang" not in d.trace


def test_times_are_relative_to_the_time_of_the_log() -> None:
    async def program(d: Drive) -> None:
        loop = asyncio.get_running_loop()
        for when in (loop.time() + 0.3, loop.time() - 1, math.inf):
            loop.call_at(when, d.log, "rang", when - loop.time())
        loop.call_at(10**400, d.log, "rang")
        loop.call_later(0.25, d.log, "rang later").cancel()
        with pytest.raises(ValueError, match="NaN"):
            loop.call_later(math.nan, d.log)

    d = Drive(DeterministicLoop)
    d.loop.now_ms = 1_893_456_000_123
    d.start(program)
    assert d.loop.time() == 1_893_456_000.123
    assert d.trace == ["rang -1.0", "timer @timer 0.3", "timer @timer#2 inf", "timer @timer#3 inf"]
    assert d.timers["@timer"].when() == pytest.approx(1_893_456_000.423)


# Nothing real inside.

REAL: dict[str, Callable[[asyncio.AbstractEventLoop], Any]] = {
    "run_in_executor": lambda loop: asyncio.to_thread(print),
    "create_connection": lambda loop: asyncio.open_connection("localhost", 1),
    "create_server": lambda loop: asyncio.start_server(lambda r, w: None, "localhost", 0),
    "create_datagram_endpoint": lambda loop: loop.create_datagram_endpoint(asyncio.DatagramProtocol),
    "getaddrinfo": lambda loop: loop.getaddrinfo("localhost", 1),
    "sock_connect": lambda loop: loop.sock_connect(cast("socket.socket", None), ("localhost", 1)),
    "add_reader": lambda loop: loop.add_reader(0, print),
    "add_signal_handler": lambda loop: loop.add_signal_handler(signal.SIGINT, print),
    "subprocess_exec": lambda loop: asyncio.create_subprocess_exec("true"),
    "subprocess_shell": lambda loop: asyncio.create_subprocess_shell("true"),
    "connect_read_pipe": lambda loop: loop.connect_read_pipe(asyncio.Protocol, sys.stdin),
    "run_forever": lambda loop: loop.run_forever(),
    "run_until_complete": lambda loop: loop.run_until_complete(loop.create_future()),
    "set_task_factory": lambda loop: loop.set_task_factory(None),
    "stop": lambda loop: loop.stop(),
    "close": lambda loop: loop.close(),
}


@pytest.mark.parametrize("call", REAL)
def test_what_reaches_outside_is_an_error_that_names_step_run(call: str) -> None:
    async def program(d: Drive) -> None:
        found = REAL[call](asyncio.get_running_loop())
        if isinstance(found, Awaitable):
            await found

    async def swallows_it(d: Drive) -> None:
        with pytest.raises(NonDeterminism, match=f"loop\\.{call}\\b.*`await step\\.run\\(") as caught:
            await program(d)
        d.log(caught.value.source[0])

    d = drive(swallows_it)
    assert [violation.found for violation in d.loop.violations] == [f"loop.{call}"]
    file, _, line = d.trace[0].rpartition(":")
    assert file == __file__ and int(line) in range(1, 1000)
    assert d.main is not None and d.main.exception() is None


def test_another_thread_cannot_reach_in_and_the_owner_is_told() -> None:
    woken: list[str] = []

    async def program(d: Drive) -> None:
        loop = asyncio.get_running_loop()
        d.loop.host = HOST._replace(wake=lambda: woken.append(threading.current_thread().name))
        thread = threading.Thread(target=lambda: loop.call_soon_threadsafe(d.log, "from outside"), name="other")
        thread.start()
        thread.join()
        loop.call_soon_threadsafe(d.log, "from inside")
        await asyncio.wrap_future(pool.submit(go_on.wait))

    go_on = threading.Event()
    with ThreadPoolExecutor(thread_name_prefix="pool") as pool:
        try:
            d = drive(program)
        finally:
            go_on.set()
    assert d.trace == ["from inside"] and woken == ["other", "pool_0"]
    with suppress(NonDeterminism):
        d.loop.check()
    with pytest.raises(NonDeterminism, match=r"by another thread.*`await step\.run\(.*\(at .*test_loop\.py:") as caught:
        d.loop.check()
    assert d.loop.violations == [caught.value]
    d.loop.abandon()
    d.loop.call_soon_threadsafe(print, "to nobody")
    assert d.loop.violations == []


def test_a_refusal_names_no_line_of_the_engine() -> None:
    with ThreadPoolExecutor() as pool:
        error = pool.submit(Drive(DeterministicLoop).loop.refusal, "sock_recv").result()
    assert error.source == ()


def test_objects_of_asyncio_cannot_be_shared_by_runs() -> None:
    shared = asyncio.Event()
    woken: list[str] = []

    async def waits(d: Drive) -> None:
        await shared.wait()

    async def wakes(d: Drive) -> None:
        shared.set()

    one = drive(waits)
    one.loop.host = HOST._replace(wake=lambda: woken.append("one"))
    one.loop.attended = False
    other = drive(wakes)
    assert woken == ["one"]
    for d, line in ((one, "await shared.wait()"), (other, "shared.set()")):
        with pytest.raises(NonDeterminism, match=r"belongs to another run .* create it inside the workflow") as caught:
            d.loop.check()
        file, _, number = caught.value.source[0].rpartition(":")
        assert linecache.getline(file, int(number)).strip() == line


def test_code_outside_the_workflow_cannot_wake_it() -> None:
    future: list[asyncio.Future[None]] = []

    async def waits(d: Drive) -> None:
        future.append(asyncio.get_running_loop().create_future())
        await future[0]

    d = drive(waits)
    d.loop.check()
    d.loop.attended = False
    future[0].set_result(None)
    with pytest.raises(NonDeterminism, match=r"by a step, or other code outside the workflow.*`await step\.run"):
        d.loop.check()


async def test_awaiting_what_belongs_to_the_workers_loop_is_found_out() -> None:
    theirs = asyncio.get_running_loop().create_future()

    async def deep_inside() -> None:
        await theirs

    async def program(d: Drive) -> None:
        with pytest.raises(RuntimeError, match=r"step\.run") as caught:
            await deep_inside()
        assert isinstance(caught.value.__cause__, NonDeterminism)

    d = drive(program)
    (violation,) = d.loop.violations
    line = deep_inside.__code__.co_firstlineno + 1
    assert violation.source == (f"{__file__}:{line}",)
    assert d.main is not None and d.main.exception() is None


def test_an_error_of_asyncio_about_the_own_loop_is_left_alone() -> None:
    async def program(d: Drive) -> None:
        assert d.main is not None
        with pytest.raises(RuntimeError, match="cannot await on itself"):
            await d.main

    d = Drive(DeterministicLoop)
    d.main = d.loop.create_task(program(d))
    d.loop.run_until_idle()
    assert d.main.done() and d.main.exception() is None
    assert not d.loop.violations


def test_a_line_in_a_package_comes_with_the_users_line() -> None:
    text = "def call(loop):\n    return loop.create_connection(object)\nasync def open_it(loop):\n    await call(loop)\n"
    package: dict[str, Any] = {}
    exec(compile(text, "/opt/lib/site-packages/http.py", "exec"), package)

    async def program(d: Drive) -> None:
        await package["open_it"](asyncio.get_running_loop())

    (violation,) = drive(program).loop.violations
    line = program.__code__.co_firstlineno + 1
    assert violation.source == ("/opt/lib/site-packages/http.py:2", f"{__file__}:{line}")


def test_code_that_spins_is_stopped() -> None:
    async def program(d: Drive) -> None:
        while True:
            await asyncio.sleep(0)

    d = Drive(DeterministicLoop)
    with pytest.raises(NonDeterminism, match="10000 callbacks"):
        d.start(program)
    assert len(d.loop.violations) == 1
    d.loop.abandon()


def test_violations_are_kept_within_bounds() -> None:
    async def program(d: Drive) -> None:
        for _ in range(500):
            with pytest.raises(NonDeterminism):
                asyncio.as_completed([d.step("never")]).__next__()

    assert len(drive(program).loop.violations) == 100


def test_code_that_tries_again_for_ever_waits_for_ever() -> None:
    async def program(d: Drive) -> None:
        while True:
            try:
                await asyncio.to_thread(print)
            except:  # noqa: E722  # as careless code would
                d.log("again")

    d = drive(program)
    assert len(d.trace) == 100
    d.loop.abandon()


def test_a_call_of_a_client_is_a_violation_with_its_line() -> None:
    async def program(d: Drive) -> None:
        raise d.loop.client_refusal()

    (violation,) = drive(program).loop.violations
    assert violation.found == "a call of a client"
    assert violation.source[0].startswith(__file__)


# Errors that nobody waits for.


def test_errors_that_nobody_waits_for_are_kept_and_not_printed(caplog: pytest.LogCaptureFixture) -> None:
    async def program(d: Drive) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: int("x"))
        loop.call_soon(sys.exit, 3)
        loop.call_exception_handler({"message": "look"})

    d = drive(program)
    assert [(u.message, type(u.error)) for u in d.loop.unhandled] == [
        ("look", type(None)),
        ("exception in a callback", ValueError),
        ("exception in a callback", SystemExit),
    ]
    assert caplog.records == []


def test_a_keyboard_interrupt_ends_the_worker_not_only_the_run() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    async def program(d: Drive) -> None:
        asyncio.get_running_loop().call_soon(interrupt)

    d = Drive(DeterministicLoop)
    with pytest.raises(KeyboardInterrupt):
        d.start(program)
    assert asyncio._get_running_loop() is None
    d.loop.abandon()


def test_who_keeps_something_for_a_task_hears_that_its_run_is_abandoned() -> None:
    """As a library with a thread of its own for it: the process would wait for that thread at its end."""
    heard: list[Any] = []

    async def program(d: Drive) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda task: heard.append(task.done()))
        task.add_done_callback(lambda task: heard.append(task.result()))  # there is none, which hurts nobody
        await asyncio.gather(d.step("a"))

    d = drive(program)
    d.loop.abandon()
    assert heard == [False]


# Nested in the worker's loop.


async def test_it_runs_inside_a_task_of_another_loop_and_leaves_it_as_it_was() -> None:
    outer, outer_task, hooks = asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()

    async def program(d: Drive) -> None:
        assert asyncio.get_running_loop() is d.loop
        assert asyncio.current_task() is d.main
        assert asyncio.all_tasks() == {d.main}
        assert d.loop.is_running()
        assert not d.loop.is_closed()
        assert not d.loop.get_debug()
        d.loop.set_debug(True)
        assert d.loop.get_task_factory() is None
        assert d.loop.get_exception_handler() is None
        with pytest.raises(RuntimeError, match="already running"):
            d.loop.run_until_idle()
        with pytest.raises(RuntimeError, match="while it runs"):
            d.loop.abandon()
        await d.step("a")

    for step in range(2):
        d = drive(program)
        assert not d.loop.is_running()
        assert (asyncio.get_running_loop(), asyncio.current_task(), sys.get_asyncgen_hooks()) == (outer, outer_task, hooks)
        await asyncio.sleep(0)
        if step:
            d.deliver("a")
            d.loop.run_until_idle()
            assert d.main is not None and d.main.result() is None
        d.loop.abandon()


async def test_it_runs_inside_a_callback_of_another_loop() -> None:
    done = asyncio.get_running_loop().create_future()

    async def program(d: Drive) -> str:
        return await d.step("a")

    def callback() -> None:
        d = drive(program)
        d.deliver("a")
        d.loop.run_until_idle()
        assert d.main is not None
        assert asyncio.current_task() is None
        done.set_result(d.main.result())

    asyncio.get_running_loop().call_soon(callback)
    assert await done == "a"


def test_a_given_context_is_the_one_that_callbacks_run_in() -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who", default="nobody")
    context = contextvars.copy_context()
    context.run(who.set, "given")
    seen: list[Any] = []

    async def program(d: Drive) -> None:
        loop = asyncio.get_running_loop()
        handle = loop.call_soon(lambda: seen.append(who.get()), context=context)
        loop.call_later(0, lambda: seen.append(who.get()), context=context)
        loop.call_soon(seen.append, "cancelled").cancel()
        assert not handle.cancelled()
        if sys.version_info >= (3, 12):
            assert handle.get_context() is context

    drive(program)
    assert seen == ["given", "given"]


# Tasks.


def test_tasks_that_are_not_done_in_the_order_of_creation() -> None:
    async def program(d: Drive) -> None:
        async with asyncio.TaskGroup() as group:
            for i in range(40):
                group.create_task(d.step(f"s{i}"), name=f"t{i}")

    d = drive(program)
    for i in range(0, 40, 2):
        d.deliver(f"s{i}")
    d.loop.run_until_idle()
    assert [t.get_name() for t in d.loop.blocked_tasks()] == ["Task-1"] + [f"t{i}" for i in range(1, 40, 2)]


def test_a_task_born_in_a_shield_is_shielded() -> None:
    async def program(d: Drive) -> list[int]:
        me = asyncio.current_task()
        assert isinstance(me, DeterministicTask)
        me.shielded += 1
        inside = d.loop.create_task(d.step("inside"), eager_start=True)
        me.shielded -= 1
        outside = d.loop.create_task(d.step("outside"))
        return [inside.shielded, outside.shielded, me.shielded]

    d = drive(program)
    assert d.main is not None and d.main.result() == [1, 0, 0]
    d.loop.abandon()


def test_hashes_of_many_runs_are_spread() -> None:
    hashes = {hash(Drive(DeterministicLoop, f"order-{i}").loop.create_future()) for i in range(20_000)}
    assert len(hashes) > 19_990


async def test_futures_of_other_loops_still_hash_by_identity() -> None:
    ours, theirs = asyncio.gather(asyncio.sleep(0)), asyncio.gather(asyncio.sleep(0))
    assert {ours: 1, theirs: 2}[ours] == 1
    assert hash(ours) == object.__hash__(ours)
    await asyncio.gather(ours, theirs)


# Leaving memory.


@pytest.fixture
def complaints(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[list[Any]]:
    """What the interpreter could not raise; the test fails if there is any, or if asyncio logged something."""
    gc.collect()  # what other tests have left behind is theirs
    found: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", found.append)
    yield found
    gc.collect()
    assert found == []
    assert caplog.records == []


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.usefixtures("complaints")
def test_an_abandoned_run_is_freed_at_once(ended: bool) -> None:
    async def program(d: Drive) -> None:
        async with asyncio.timeout(5):
            await d.step("a")

    gc.disable()
    try:
        d = drive(program)
        if ended:
            d.deliver("a")
            d.loop.run_until_idle()
        assert d.main is not None
        loop, main = weakref.ref(d.loop), weakref.ref(d.main)
        d.loop.abandon()
        assert d.loop.abandoned
        d.main = None
        d.timers.clear()
        assert main() is None
        del d
        gc.enable()
        gc.collect()  # the loop and its owner know each other
        assert loop() is None
    finally:
        gc.enable()


def test_the_loop_that_a_run_ran_inside_of_is_freed_with_it() -> None:
    class Outer(asyncio.SelectorEventLoop):
        run: Drive

    async def program(d: Drive) -> None:
        await d.step("a")

    async def serve() -> weakref.ref[Outer]:
        outer = asyncio.get_running_loop()
        assert isinstance(outer, Outer)
        outer.run = drive(program)
        return weakref.ref(outer)

    with asyncio.Runner(loop_factory=Outer) as runner:
        outer = runner.run(serve())
    gc.collect()
    assert outer() is None


@pytest.mark.usefixtures("complaints")
def test_an_abandoned_run_that_swallows_everything_is_its_own_task_to_the_end() -> None:
    async def program(d: Drive) -> None:
        while True:
            with suppress(BaseException):  # outside a task, timeout() raises, and nothing below ever waits
                async with asyncio.timeout(60):
                    await d.step("a")

    d = drive(program)
    d.loop.abandon()
    assert asyncio.current_task(d.loop) is None


@pytest.mark.usefixtures("complaints")
async def test_an_abandoned_run_reaches_nothing_outside() -> None:
    outside = asyncio.all_tasks()
    seen: list[str] = []

    async def generate(d: Drive) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append("generator")
            await d.step("close")

    async def child(d: Drive) -> None:
        try:
            async for _ in generate(d):
                await d.step("child")
        finally:
            loop = asyncio.get_running_loop()
            seen.append(f"child in {type(loop).__name__}")
            loop.call_soon(seen.append, "never")
            loop.call_later(0, seen.append, "never")
            loop.call_later(1, seen.append, "never")
            await asyncio.gather(d.step("never"), asyncio.to_thread(seen.append, "never"))
            seen.append("never")

    async def program(d: Drive) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child(d))
                await asyncio.sleep(60)
        except Exception:  # noqa: BLE001  # as careless code would
            seen.append("never")
        finally:
            seen.append("main")
            await asyncio.to_thread(seen.append, "never")
            seen.append("never")

    d = drive(program)
    before = list(d.trace)
    timer = d.timers["@timer"]
    d.loop.abandon()
    d.loop.abandon()
    d.loop.fire(timer)
    d.loop.call_soon(seen.append, "never")
    d.loop.run_until_idle()
    await asyncio.sleep(0)
    assert d.trace == before
    assert seen == ["child in DeterministicLoop", "main"]
    assert d.loop.is_closed()
    assert d.loop.unhandled == []
    assert d.loop.violations == []
    assert asyncio.all_tasks() == outside


@pytest.mark.usefixtures("complaints")
def test_an_abandoned_run_may_resist_for_a_while() -> None:
    tries = 0

    async def program(d: Drive) -> None:
        nonlocal tries
        waits = [d.ask(f"s{i}") for i in range(6)]
        for wait in waits:
            try:
                await wait
            except BaseException:  # noqa: BLE001  # as careless code would
                tries += 1
        raise RuntimeError("nobody hears this")

    d = drive(program)
    d.loop.abandon()
    assert tries == 6


@pytest.mark.usefixtures("complaints")
@pytest.mark.parametrize("awaits", ["the same", "another", "a turn"])
def test_an_abandoned_run_that_always_resists_is_given_up(awaits: str) -> None:
    tries, listens = 0, False

    async def program(d: Drive) -> None:
        nonlocal tries
        same = d.ask("a")
        with suppress(BaseException):
            await same
        while not listens:
            try:
                await (same if awaits == "the same" else d.loop.create_future() if awaits == "another" else asyncio.sleep(0))
            except:  # noqa: E722  # as careless code would
                tries += 1

    drive(program).loop.abandon()
    assert tries == 99
    gc.collect()
    assert tries == 99
    listens = True


@pytest.mark.usefixtures("complaints")
def test_what_an_abandoned_run_raises_is_dropped() -> None:
    async def program(d: Drive) -> None:
        asyncio.create_task(failing(d))  # noqa: RUF006  # the loop keeps it
        await d.step("a")

    async def failing(d: Drive) -> None:
        try:
            await d.step("b")
        finally:
            raise ValueError("nobody hears this")

    d = drive(program)
    d.loop.create_task(d.step("never"))  # it never began
    d.loop.abandon()
    assert d.loop.unhandled == []


def test_a_timer_looks_like_asyncios() -> None:
    timer = Timer(Drive(DeterministicLoop).loop, 7, 1.5, print, (), contextvars.copy_context())
    assert (timer.id, timer.when(), timer.cancelled()) == ("@timer#7", 1.5, False)
    timer.cancel()
    assert timer.cancelled()
    assert isinstance(timer.get_context(), contextvars.Context)
