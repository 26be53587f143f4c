"""Answers to the callbacks of programs, by clients and through the inbox: the code hands an id out, and the world answers by it.

An answer is [ms after the id was handed out, "good" | "list" | "bad" | "beat" | "forged", "client" | "inbox" | "twice"].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orjson import dumps

from stepfold import Client, RunNotFound
from stepfold.operations.callback import CallbackId

if TYPE_CHECKING:
    from world import Intent, World

BAD = "meant to be bad"


class Answering:
    """The callbacks of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.known: dict[str, CallbackId] = {}

    def asked(self, callback_id: str, answers: list[list[Any]]) -> None:
        """The code of a run hands an id out, its own or that of another run, perhaps again on a replay."""
        if callback_id in self.known:
            return
        self.known[callback_id] = CallbackId.parse(callback_id)
        for number, (after_ms, what, how) in enumerate(answers):
            self._world.after(after_ms / 1000, self._send, callback_id, number, what, how)

    def _send(self, callback_id: str, number: int, what: str, how: str) -> None:
        world, run_id = self._world, self.known[callback_id].run_id
        if what == "forged":
            callback_id = str(self.known[callback_id]._replace(nonce="forged"))
        if how == "client" or not world.log.kafka:  # which alone has an inbox
            world.ask(run_id, "callback", callback_id, [what, number])
            return
        content: dict[str, Any] = {"id": callback_id, **_content(what, number)}
        event = {"specversion": "1.0", "type": "stepfold.callback", "source": callback_id, "id": f"{number}", "data": content}
        for copy in range(2 if how == "twice" else 1):
            world.log.put_inbox((number + copy) % world.partitions, None, dumps(event))
        world.happened("foreign", f"{what} answer to a callback of {run_id}")


def said(what: str, number: int) -> Any:
    """The data of an answer."""
    return [f"good {number}"] if what == "list" else f"{what} {number}"


def _content(what: str, number: int) -> dict[str, Any]:
    if what == "beat":
        return {"heartbeat": True}
    return {"error": {"message": BAD}} if what == "bad" else {"data": said(what, number)}


async def answer(world: World, client: Client, intent: Intent) -> None:
    """A client answers, and is told whether that counts. After a log was put back, a run may not be there."""
    what, number = intent.data
    try:
        if what == "beat":
            counts = await client.heartbeat_callback(intent.name)
        elif what == "bad":
            counts = await client.fail_callback(intent.name, BAD)
        else:
            counts = await client.complete_callback(intent.name, said(what, number))
    except RunNotFound:
        return
    world.tell(lambda eye: eye.client_acked("callback", intent.run.id, "", [what, said(what, number), counts]))
