"""What the programs of a world know of the process that they run in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepfold.testing.processes import Process

if TYPE_CHECKING:
    from world import World


class Gone(BaseException):
    """Raised into code whose process has just died: what it would do until its turn ends never happened."""


class Host:
    """The process that programs run in, for `programs`."""

    def __init__(self, world: World, process: Process) -> None:
        self.name = process.name
        self.beating = world.beating
        self.shared: dict[str, Any] = {}
        self._world = world
        self._process = process

    def block(self, seconds: float) -> None:
        """The process does nothing else for so long."""
        if self._process.state == "running":
            self._world.happened("hostile", f"{self.name} is blocked for {seconds} s")
            self._process.pause()
            self._world.after(seconds, self._world.resume, self._process)

    def die(self, run_id: str, times: int) -> None:
        """The run ends its process here, the first so many times."""
        if self._process.state != "dead" and self._world.deaths[run_id] < times:
            self._world.deaths[run_id] += 1
            self._world.died(self._process, f"by run {run_id}")
        if self._process.state == "dead":
            raise Gone

    def step_started(self, run_id: str, step_id: str, attempt: int, args: Any, heartbeat: Any) -> None:
        if self._process.state == "dead":
            raise Gone
        now = self._process.clock()
        self._world.tell(lambda eye: eye.step_started(self.name, run_id, step_id, attempt, now, args, heartbeat))

    def step_beat(self, run_id: str, step_id: str, attempt: int, details: Any) -> None:
        self._world.tell(lambda eye: eye.step_beat(self.name, run_id, step_id, attempt, details))

    def step_ended(self, run_id: str, step_id: str, attempt: int, outcome: Any) -> None:
        if self._process.state != "dead":
            now = self._process.clock()
            self._world.tell(lambda eye: eye.step_ended(self.name, run_id, step_id, attempt, now, outcome))

    def asked(self, callback_id: str, answers: list[list[Any]]) -> None:
        if self._process.state == "dead":
            raise Gone
        self._world.answering.asked(callback_id, answers)

    def delivered(self, run_id: str, step_id: str, value: Any, at_ms: int) -> None:
        if self._process.state == "dead":
            raise Gone
        self._world.tell(lambda eye: eye.delivered(self.name, run_id, step_id, value, at_ms))
