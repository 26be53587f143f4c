"""The calls and awaitables that the code of a workflow may not use, and the words for them."""

from __future__ import annotations

from collections.abc import Iterable
from types import FrameType
from typing import NamedTuple

from ..errors import NonDeterminism
from .frames import source_of


class CodeRefusal(NamedTuple):
    """A refusal in words. `found`: the thing that the code used, in a few."""

    message: str
    found: str

    def error(self, frames: Iterable[FrameType]) -> NonDeterminism:
        """The error to raise. `frames`: those of the code, innermost first; the error names the user's lines among them."""
        source = source_of(frames)
        at = f" (at {source[0]})" if source else ""
        return NonDeterminism(self.message + at, found=self.found, source=source)


CLIENT = CodeRefusal(
    "workflow code called a client, and each replay would repeat the call: signal another run by `await "
    "step.send_signal(...)`, and do anything else in a step, such as "
    '`await step.run("start", start)` with `async def start(): await client.start_workflow(...)`',
    "a call of a client",
)
SHARED = CodeRefusal(
    "workflow code uses an asyncio lock, semaphore, event, queue or future that belongs to another run (or event loop) "
    "and cannot wake this run; create it inside the workflow",
    "an object of another event loop",
)
PLAIN_TASK = CodeRefusal(
    "workflow code called asyncio.Task; such a task cannot be ordered: use asyncio.create_task",
    "asyncio.Task",
)
FOREIGN_AWAITABLE = CodeRefusal(
    "workflow code awaited something that belongs to another event loop (a connection, a client, a task of the "
    "worker) outside a step; move it into `await step.run(...)`",
    "an awaitable of another event loop",
)
AS_COMPLETED = CodeRefusal(
    "asyncio.as_completed over coroutines starts them in an order that differs between processes; pass tasks: "
    "asyncio.as_completed([asyncio.create_task(c) for c in coroutines])",
    "asyncio.as_completed over coroutines",
)


def spins(turns: int) -> CodeRefusal:
    """Code that never becomes idle."""
    return CodeRefusal(
        f"workflow code ran {turns} callbacks without awaiting anything durable: it spins; "
        f"await a step, a sleep or a signal in the loop",
        "a loop that awaits nothing durable",
    )


def in_query(asked: str) -> CodeRefusal:
    """A query that asks for something, or that makes the workflow's code go on, which then does: `asked`, in words."""
    return CodeRefusal(
        f"it asked for {asked}, or made the code of the workflow go on, which asked for it: a query only reads; return what "
        "`ctx` and `ctx.state` hold, and let the workflow do the rest when it gets a signal",
        asked,
    )


def woken(cause: str) -> CodeRefusal:
    """An awaitable of the code that something outside the run completed: `cause`, in words."""
    return CodeRefusal(
        f"an awaitable of workflow code was completed {cause}, outside of the history, so no replay repeats "
        "it; move that work into `await step.run(...)` and use what it returns",
        f"a wake-up {cause}",
    )


# By prefix, so that the methods of later versions of Python match, too.
_REAL = {
    "add_signal": "a signal",
    "remove_signal": "a signal",
    "add_": "a file descriptor",
    "remove_": "a file descriptor",
    "call_soon_threadsafe": "from another thread",
    "connect_": "a pipe",
    "create_": "a socket",
    "getaddrinfo": "a name look-up",
    "getnameinfo": "a name look-up",
    "run_in_executor": "a thread",
    "run_": "another run of an event loop",
    "sendfile": "a file and a socket",
    "sock_": "a socket",
    "start_tls": "a socket",
    "subprocess_": "a process",
}


def call_of_loop(name: str) -> CodeRefusal:
    """A method of the event loop that a workflow's loop does not serve."""
    real = next((real for prefix, real in _REAL.items() if name.startswith(prefix)), None)
    if real is None:
        message = f"workflow code called loop.{name}; its event loop is stepfold's, and real work goes into `await step.run(...)`"
    else:
        message = f"workflow code called loop.{name} ({real}) outside a step; move it into `await step.run(...)`"
    return CodeRefusal(message, f"loop.{name}")
