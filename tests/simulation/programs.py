"""Random workflows, and the model that says what may come of them.

A program is JSON: the input of the one workflow `program`, which interprets it. So the log holds what was to be done, and
`allowed` can judge a result without the engine. The nodes:

    ["step", id, {fails, max, how, ms, once, plain}]    fails its first `fails` attempts, if it is not lost before
    ["sleep", id, ms]
    ["wait", id, signal, timeout_ms or null]
    ["callback", id, timeout_ms or null, heartbeat_ms or null, answers]    see answering.py
    ["poll", id, {polls, ...}]                          a condition, see polling.py
    ["seq" | "gather" | "group" | "race", [nodes]]      one after the other; all at once; in a TaskGroup; the first that ends
    ["map", [nodes], concurrency or null]               all, by step.map
    ["first", [nodes]]                                  the first that ends, by step.race
    ["within", ms, node]                                asyncio.timeout
    ["shield", node]                                    out of reach of a cancellation
    ["send", id, run_id, signal]                        to another run
    ["child", id, program, timeout_ms, policy]          another run, by step.invoke_workflow
    ["detached", id, program]                           another run, by step.start_workflow
    ["drift", id]                                       another step in every process: nondeterministic
    ["publish", key, count]                             as many values under a key, see `telling`
    ["fail", message]                                   ends the run
    ["hostile", kind, variant, data]                    does what nobody should, see hostile.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache, partial
from random import Random
from typing import Any, Protocol

import hostile
import polling

from stepfold import (
    CallbackFailed,
    CallbackTimedOut,
    ChildFailed,
    ChildTimedOut,
    Client,
    Context,
    Retry,
    Step,
    StepFailed,
    current_step,
)
from stepfold.authoring.step import RunningStep
from stepfold.errors import NonRetryable

Node = list[Any]
ALWAYS = 1000
"""As a number of failures: every attempt."""
HANG_S = 1e6
_QUICK = {"fails": 0, "max": 3, "how": "error", "ms": 0, "once": False, "plain": False}


class Host(hostile.Host, Protocol):
    """The process in which programs run."""

    beating: bool

    def delivered(self, run_id: str, step_id: str, value: Any, at_ms: int) -> None: ...


# -- making them


def generate(random: Random, *, others: list[str], size: int = 6) -> Node:
    """A program. `others`: runs that it may send signals to."""
    if random.random() < 0.06:
        return ["seq", [["drift", "drifts"], ["wait", "release", "release", None]]]
    nodes: list[Node] = [_node(random, 2, others) for _ in range(1 + random.randrange(size))]
    if random.random() < 0.08:
        nodes.append(["fail", "meant to fail"])
    return ["seq", nodes]


def spoiled(random: Random, program: Node) -> Node:
    """The program with something hostile in it, somewhere."""
    nodes: list[Node] = list(program[1])
    at = random.randrange(len(nodes) + 1)
    node = hostile.generate(random)
    if random.random() < 0.3:
        node = ["gather", [node, *nodes[at : at + 1]]]
        del nodes[at : at + 1]
    nodes.insert(at, node)
    return ["seq", nodes]


def composed(random: Random, node: Node) -> Node:
    """The program with some of its branches made by `step.map` and `step.race`."""
    if node[0] in ("within", "shield"):
        return [*node[:-1], composed(random, node[-1])]
    if node[0] not in _BRANCHED:
        return node
    inner = [composed(random, one) for one in node[1]]
    if node[0] in ("gather", "group") and random.random() < 0.7:
        return ["map", inner, random.choice((None, None, 1, 2, 7))]
    return ["first" if node[0] == "race" and random.random() < 0.7 else node[0], inner, *node[2:]]


def telling(random: Random, node: Node) -> Node:
    """The program with values that it publishes between its other nodes: the number of each among those of its key."""
    if node[0] in ("within", "shield"):
        return [*node[:-1], telling(random, node[-1])]
    if node[0] not in _BRANCHED:
        return node
    inner = [telling(random, one) for one in node[1]]
    if node[0] == "seq":
        for _ in range(random.choice((0, 1, 1, 2))):
            inner.insert(random.randrange(len(inner) + 1), ["publish", random.choice("pq"), random.choice((1, 1, 3, 40, 600))])
    return [node[0], inner, *node[2:]]


def polls(random: Random, node: Node) -> Node:
    """The program with conditions in the place of some of its sleeps and steps."""
    if node[0] in ("within", "shield"):
        return [*node[:-1], polls(random, node[-1])]
    if node[0] in _BRANCHED:
        return [node[0], [polls(random, one) for one in node[1]], *node[2:]]
    if random.random() < {"sleep": 0.6, "step": 0.15}.get(node[0], 0):
        return polling.node(random, node[1])
    return node


_BRANCHED = ("seq", "gather", "group", "race", "map", "first")


def parental(random: Random, program: Node) -> Node:
    """The program with children in it, somewhere."""
    nodes: list[Node] = list(program[1])
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        at = random.randrange(len(nodes) + 1)
        node = _child(random, 2)
        how = random.random()
        if how < 0.3:
            node = ["gather", [node, *nodes[at : at + 1], _child(random, 0)]]
            del nodes[at : at + 1]
        elif how < 0.45:
            node = ["within", random.choice((1, 50, 1_000)), node]
        elif how < 0.55:
            node = ["shield", node]
        nodes.insert(at, node)
    return ["seq", nodes]


def _child(random: Random, depth: int) -> Node:
    """Time ends it, if nothing else does: a child may be quarantined."""
    nodes: list[Node] = []
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        kind = random.choice(("step", "sleep", "wait", "burst"))
        if kind == "step":
            nodes.append(["step", random.choice("abcd"), {**_QUICK, "ms": random.choice((0, 0, 1, 30, 1_000))}])
        elif kind == "sleep":
            nodes.append(["sleep", random.choice("abcd"), random.choice((0, 1, 300, 15_000))])
        elif kind == "wait":
            nodes.append(["wait", random.choice("abcd"), "x", random.choice((5, 1_000, 30_000))])
        else:
            nodes.append(["gather", [["step", "a", _QUICK]] * random.choice((2, 5))])
    if depth and random.random() < 0.4:
        nodes.append(_child(random, depth - 1))
    if random.random() < 0.15:
        nodes.append(["fail", "meant to fail"])
    name = random.choice("kl")
    if random.random() < 0.2:
        return ["detached", name, ["seq", nodes]]
    return ["child", name, ["seq", nodes], random.choice((5, 1_000, 3_600_000, 3_600_000)), random.choice(("cancel", "abandon"))]


def _node(random: Random, depth: int, others: list[str]) -> Node:
    kind = random.choices(
        ("step", "burst", "sleep", "wait", "callback", "seq", "gather", "group", "race", "within", "shield", "send"),
        (50, 8, 10, 9, 6, 5, 5, 4, 4, 3, 2, 2) if depth else (50, 8, 10, 9, 6, 0, 0, 0, 0, 0, 0, 2),
    )[0]
    name = random.choice("abcd")
    if kind == "burst":
        return ["gather", [["step", name, _QUICK]] * random.choice((5, 20, 60))]
    if kind == "sleep":
        return ["sleep", name, random.choice((0, 1, 10, 300, 2_000, 15_000))]
    if kind == "wait":
        return ["wait", name, random.choice("xyz"), random.choice((None, None, 5, 1_000, 30_000))]
    if kind == "callback":
        return _callback(random, name)
    if kind in ("seq", "gather", "group", "race"):
        return [kind, [_node(random, depth - 1, others) for _ in range(2 + random.randrange(3))]]
    if kind == "within":
        return ["within", random.choice((1, 50, 1_000, 10_000)), _node(random, depth - 1, others)]
    if kind == "shield":
        return ["shield", _node(random, depth - 1, others)]
    if kind == "send" and others:
        return ["send", name, random.choice(others), random.choice("xyz")]
    most = random.choice((1, 2, 3, 5))
    return [
        "step",
        name,
        {
            "fails": random.choice((0, 0, 0, 0, 0, 0, 0, 1, 2, ALWAYS)),
            "max": most,
            "how": random.choice(("error", "error", "hang", "fatal")),
            "ms": random.choice((0, 0, 0, 0, 1, 30, 1_000)),
            "once": random.random() < 0.1,
            "plain": random.random() < 0.1,
        },
    ]


def _callback(random: Random, name: str) -> Node:
    """Something ends it: an answer, or its time."""
    timeout_ms, heartbeat_ms = random.choice((None, 5, 1_000, 30_000)), random.choice((None, None, 200, 10_000))
    answers: list[list[Any]] = []
    for _ in range(random.choice((0, 1, 1, 2, 3, 6))):
        after_ms = random.choice((0, 1, 5, 150, 1_000, 1_000, 20_000, 40_000))
        what = random.choice(("good", "good", "bad", "beat", "beat", "forged"))
        answers.append([after_ms, what, random.choice(("client", "inbox", "twice"))])
    if timeout_ms is heartbeat_ms is None and not any(what in ("good", "bad") for _, what, _ in answers):
        answers.append([300, "good", random.choice(("client", "inbox", "twice"))])
    return ["callback", name, timeout_ms, heartbeat_ms, answers]


def waits(node: Node) -> Iterator[str]:
    """The signals that a program may take, each as often as it may."""
    if node[0] == "wait":
        yield node[2]
    for inner in _inner(node):
        yield from waits(inner)


def contains(node: Node, kind: str) -> bool:
    """Whether there is such a node in it."""
    return node[0] == kind or any(contains(inner, kind) for inner in _inner(node))


def lingers(node: Node) -> bool:
    """Whether its run may wait for ever."""
    return any(hostile.KINDS[one[1]].lingers for one in hostile_ones(node))


def ends(node: Node) -> set[str]:
    """How its run may end because of what is hostile in it."""
    return {end for one in hostile_ones(node) for end in hostile.KINDS[one[1]].ends}


def hostile_ones(node: Node) -> Iterator[Node]:
    """The hostile nodes in it."""
    if node[0] == "hostile":
        yield node
    for inner in _inner(node):
        yield from hostile_ones(inner)


def _inner(node: Node) -> list[Node]:
    if node[0] in _BRANCHED:
        return node[1]
    return [node[2]] if node[0] == "within" else [node[1]] if node[0] == "shield" else []


# -- what may come of them


def allowed(node: Node, value: Any, run_id: str, signals: set[tuple[str, Any]]) -> bool:
    """Whether a program may have given this value. `signals`: all (name, data) that the run was ever sent."""
    kind = node[0]
    if kind == "step":
        how = node[2]
        good, bad = value == ["ok", node[1], run_id], value == ["failed", node[1]]
        if how["fails"] >= (1 if how["how"] == "fatal" else how["max"]):
            return bad or (good and how["fails"] != ALWAYS)
        # An attempt may be lost with its worker, or take longer than its time because the worker was stopped meanwhile.
        return good or (bad and (how["once"] or how["how"] == "hang"))
    if kind == "sleep":
        return value == ["slept", node[1]]
    if kind == "poll":
        return polling.allowed(node[2], node[1], value)
    if kind == "wait":
        if value == ["timeout", node[1]]:
            return node[3] is not None
        return value[0] == "signal" and value[1] == node[2] and (node[2], value[2]) in signals
    if kind == "callback":
        if value[0] == "silence":
            return node[2 if value[2] == "timeout" else 3] is not None
        said = "bad" if value == ["call failed", node[1]] else "good"
        good = {f"good {number}" for number, (_, what, _) in enumerate(node[4]) if what == "good"}
        return any(what == said for _, what, _ in node[4]) and (said == "bad" or value[2] in good)
    if kind in ("seq", "gather", "group", "map"):
        inner = node[1]
        return len(value) == len(inner) and all(
            allowed(one, found, run_id, signals) for one, found in zip(inner, value, strict=True)
        )
    if kind in ("race", "first"):
        return value[0] == "first" and allowed(node[1][value[1]], value[2], run_id, signals)
    if kind == "within":
        return value == ["too late"] or (value[0] == "in time" and allowed(node[2], value[1], run_id, signals))
    if kind == "shield":
        return allowed(node[1], value, run_id, signals)
    if kind == "send":
        return value in (["sent", node[1]], ["failed", node[1]])
    if kind == "publish":
        return value[:2] == ["published", node[1]] and value[2] >= node[2]
    if kind == "child":
        fails = contains(node[2], "fail")
        if value == ["child too late", node[1]]:
            return True
        if value == ["child failed", node[1]]:
            return fails
        return not fails and value[:2] == ["child", node[1]] and allowed(node[2], value[2], _Below(run_id), signals)
    if kind == "detached":
        return value[:2] == ["detached", node[1]] and value[2] == _Below(run_id)
    if kind == "hostile":
        return hostile.allowed(node, value)
    return kind == "drift" and value[0] == "ok"


class _Below(str):
    """Equal to the id of any child of a run, and of its children."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and other.startswith(f"{str.__str__(self)}/")

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


# -- running them


def register(client: Client, host: Host, versions: tuple[str, ...]) -> None:
    """Make the workflow known to a client's workers in these versions."""

    functions = Functions(host)

    async def program(ctx: Context[Any], step: Step) -> Any:
        machine = _Machine(ctx, functions)
        try:
            return await machine.do(ctx.input.data, step, "")
        except asyncio.CancelledError:
            with step.shield():
                await machine.step(step, "", ["step", "cleanup", _QUICK])
            raise

    for version in versions:
        client.workflow("program", version=version)(program)


@cache
def _retry(attempts: int) -> Retry:
    return Retry(attempts, backoff=0.05 * attempts)


class _Machine:
    """Interprets a program in one replay of one run. `path` is the scope that `step` is in."""

    def __init__(self, ctx: Context[Any], functions: Functions) -> None:
        self.ctx = ctx
        self.functions = functions
        self.host = functions.host
        self.hostile = functions.hostile
        self._used: dict[str, int] = {}
        self._published: dict[str, int] = {}

    async def do(self, node: Node, step: Step, path: str) -> Any:
        kind = node[0]
        if kind == "step":
            return await self.step(step, path, node)
        if kind == "sleep":
            step_id = self._id(path, node[1])
            await step.sleep(node[1], node[2] / 1000)
            self._got(step_id, None)
            return ["slept", node[1]]
        if kind == "wait":
            return await self._wait(step, path, node)
        if kind == "callback":
            return await self._callback(step, path, node)
        if kind == "poll":
            return await polling.wait(step, node, self.functions.checks, partial(self._got, self._id(path, node[1])))
        if kind == "seq":
            return [await self.do(inner, step, path) for inner in node[1]]
        if kind == "gather":
            return list(await asyncio.gather(*(self._branch(inner, step, path, n) for n, inner in enumerate(node[1]))))
        if kind == "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._branch(inner, step, path, n)) for n, inner in enumerate(node[1])]
            return [task.result() for task in tasks]
        if kind == "race":
            return await self._race(step, path, node)
        if kind == "map":
            return await self._map(step, path, node)
        if kind == "first":
            branches = [partial(self._mapped, path, n, inner) for n, inner in enumerate(node[1])]
            won = await step.race("all", {f"{n}": branch for n, branch in enumerate(branches)})
            return ["first", int(won.key), won.value]
        if kind == "within":
            try:
                async with asyncio.timeout(node[1] / 1000):
                    return ["in time", await self.do(node[2], step, path)]
            except TimeoutError:
                return ["too late"]
        if kind == "shield":
            with step.shield():
                return await self.do(node[1], step, path)
        if kind == "send":
            return await self._send(step, path, node)
        if kind == "publish":
            return await self._publish(step, node)
        if kind == "child":
            return await self._child(step, path, node)
        if kind == "detached":
            self._id(path, node[1])
            return ["detached", node[1], await step.start_workflow(node[1], "program", node[2])]
        if kind == "drift":
            return await self.step(step, path, ["step", f"drift-{self.host.name}", _QUICK])
        if kind == "hostile":
            return await hostile.KINDS[node[1]].do(self, step, node[2], node[3])
        raise RuntimeError(node[1])

    def _id(self, path: str, name: str) -> str:
        """The id that the engine gives to the next step of this name."""
        step_id = path + name
        used = self._used[step_id] = self._used.get(step_id, 0) + 1
        return step_id if used == 1 else f"{step_id}#{used}"

    def _got(self, step_id: str, value: Any) -> None:
        self.host.delivered(self.ctx.run_id, step_id, value, round(self.ctx.now().timestamp() * 1000))

    async def step(self, step: Step, path: str, node: Node) -> Any:
        _, name, how = node
        retry = _retry(how["max"])
        step_id = self._id(path, name)
        work = self.functions.plain if how["plain"] and how["how"] != "hang" else self.functions.work
        timeout = 2 if how["how"] == "hang" else None
        argument = self.ctx.random.randrange(1000)
        try:
            value = await step.run(name, work, how, name, argument, retry=retry, timeout=timeout, at_most_once=how["once"])
        except StepFailed as error:
            self._got(step_id, error)
            return ["failed", name]
        self._got(step_id, value)
        return value

    async def _wait(self, step: Step, path: str, node: Node) -> Any:
        _, name, signal, timeout_ms = node
        step_id = self._id(path, name)
        if timeout_ms is None:
            found = await step.wait_for_signal(name, signal=signal)
        else:
            found = await step.wait_for_signal(name, signal=signal, timeout=timeout_ms / 1000)
        self._got(step_id, None if found is None else found.data)
        return ["timeout", name] if found is None else ["signal", found.name, found.data]

    async def _callback(self, step: Step, path: str, node: Node) -> Any:
        _, name, timeout_ms, heartbeat_ms, answers = node
        step_id = self._id(path, name)
        limits = [None if ms is None else ms / 1000 for ms in (timeout_ms, heartbeat_ms)]
        callback = await step.callback(name, timeout=limits[0], heartbeat=limits[1])
        self.host.asked(callback.id, answers)
        try:
            value = await callback
        except CallbackFailed as error:
            self._got(step_id, error)
            return ["call failed", name]
        except CallbackTimedOut as error:
            self._got(step_id, error)
            return ["silence", name, error.kind]
        self._got(step_id, value)
        return ["answered", name, value]

    async def _send(self, step: Step, path: str, node: Node) -> Any:
        _, name, run_id, signal = node
        step_id = self._id(path, name)
        try:
            await step.send_signal(name, signal=signal, data=f"from {self.ctx.run_id}", run_id=run_id)
        except StepFailed as error:
            self._got(step_id, error)
            return ["failed", name]
        self._got(step_id, None)
        return ["sent", name]

    async def _publish(self, step: Step, node: Node) -> Any:
        _, key, count = node
        for _ in range(count):
            number = self._published[key] = self._published.get(key, 0) + 1
            await step.publish(key, number)
        return ["published", key, self._published[key]]

    async def _child(self, step: Step, path: str, node: Node) -> Any:
        _, name, program, timeout_ms, policy = node
        self._id(path, name)
        try:
            result = await step.invoke_workflow(name, "program", program, timeout=timeout_ms / 1000, on_parent_close=policy)
        except ChildFailed:
            return ["child failed", name]
        except ChildTimedOut:
            return ["child too late", name]
        return ["child", name, result]

    async def _branch(self, node: Node, step: Step, path: str, number: int) -> Any:
        async with step.scope(f"{number}") as inner:
            return await self.do(node, inner, f"{path}{number}/")

    async def _map(self, step: Step, path: str, node: Node) -> Any:
        async def branch(inner: Step, numbered: tuple[int, Node]) -> Any:
            return await self._mapped(path, *numbered, inner)

        inner: list[Node] = node[1]
        done = await step.map("all", enumerate(inner), branch, concurrency=node[2])
        for error in done.errors():
            raise error
        return done.results()

    async def _mapped(self, path: str, number: int, node: Node, step: Step) -> Any:
        return await self.do(node, step, f"{path}all/{number}/")

    async def _race(self, step: Step, path: str, node: Node) -> Any:
        tasks = [asyncio.create_task(self._branch(inner, step, path, n)) for n, inner in enumerate(node[1])]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            first = min(number for number, task in enumerate(tasks) if task in done)
            return ["first", first, tasks[first].result()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class Functions:
    """The step functions of one process."""

    def __init__(self, host: Host) -> None:
        async def work(how: dict[str, Any], name: str, argument: int) -> list[str]:
            now = current_step()
            host.step_started(now.run_id, now.step_id, now.attempt, argument, now.last_heartbeat)
            beats = host.beating and (how["ms"] or how["fails"])
            try:
                if beats:
                    _beat(host, now, "begun")
                if how["ms"]:
                    await asyncio.sleep(how["ms"] / 1000)
                if beats:
                    _beat(host, now, "half way")
                if how["how"] == "hang" and now.attempt <= how["fails"]:
                    await asyncio.sleep(HANG_S)
                value = _outcome(how, name, now.run_id, now.attempt)
            except BaseException as error:
                host.step_ended(now.run_id, now.step_id, now.attempt, error)
                raise
            host.step_ended(now.run_id, now.step_id, now.attempt, value)
            return value

        def plain(how: dict[str, Any], name: str, argument: int) -> list[str]:
            now = current_step()
            host.step_started(now.run_id, now.step_id, now.attempt, argument, now.last_heartbeat)
            try:
                value = _outcome(how, name, now.run_id, now.attempt)
            except Exception as error:
                host.step_ended(now.run_id, now.step_id, now.attempt, error)
                raise
            host.step_ended(now.run_id, now.step_id, now.attempt, value)
            return value

        self.host = host
        self.hostile = hostile.Steps(host)
        self.checks = polling.Checks(host)
        self.work = work
        self.plain = plain


def _beat(host: Host, now: RunningStep, where: str) -> None:
    details = [now.attempt, where]
    host.step_beat(now.run_id, now.step_id, now.attempt, details)
    now.heartbeat(details)


def _outcome(how: dict[str, Any], name: str, run_id: str, attempt: int) -> list[str]:
    if attempt <= how["fails"]:
        if how["how"] == "fatal":
            raise NonRetryable(f"attempt {attempt} of {name} fails for good")
        raise ValueError(f"attempt {attempt} of {name} fails")
    return ["ok", name, run_id]
