"""The routes that show the system: partitions, workers, projections, groups of errors, counts by minute."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import BaseModel, Field

from stepfold.projections import Minute, list_errors, list_minutes

from ..client.requests import Sender
from ..values.times import utc
from .delays import Trend
from .headers import POSITION, reach
from .models import Asking, Name, Time
from .payload import lags_for
from .problems import HttpRefusal
from .requests import sender_of
from .routing import Answer, HttpCall, Role, Row
from .service import PartitionBounds, workers_in

MOST_MINUTES = 1440


class PartitionNow(BaseModel):
    """A partition: its owner (null: no worker), the time of the owner's claim, and the offsets that the log holds.

    The server's tables hold everything below `position` and lack `behind` records; the first of these came `behind_s` seconds ago
    (null: the log does not say). `trend`: how `behind_s` has changed in the last half a minute; null if nobody asked in that
    time.
    """

    partition: int
    owner: str | None
    since: datetime | None
    start: int
    end: int
    position: int
    behind: int
    behind_s: float | None
    trend: Trend | None


class PartitionsNow(BaseModel):
    """All partitions of the log."""

    partitions: list[PartitionNow]


async def get_partitions(call: HttpCall) -> Answer:
    """Show the partitions of the log with their owners, and how far the tables are behind."""
    partitions = await call.service.partitions()
    return Answer(PartitionsNow(partitions=await _partitions(call, partitions)))


async def _partitions(call: HttpCall, partitions: Sequence[PartitionBounds]) -> list[PartitionNow]:
    delays = await call.service.delays.of(await call.service.projections.lag())
    found: list[PartitionNow] = []
    for one in partitions:
        position, behind, behind_s, trend = one.delay(delays)
        more = {"position": position, "behind": behind, "behind_s": behind_s, "trend": trend}
        since = None if one.since is None else utc(one.since)
        found.append(PartitionNow.model_validate(one._asdict() | more | {"since": since}))
    return found


class WorkerNow(BaseModel):
    """A worker that has claimed partitions. `host`, `pid`: from its name; null if the name does not hold them."""

    worker: str
    host: str | None
    pid: int | None
    since: datetime
    partitions: list[PartitionNow]


class WorkersNow(BaseModel):
    """The workers that own partitions. `unowned`: the partitions that no worker owns."""

    workers: list[WorkerNow]
    unowned: list[int]


async def get_workers(call: HttpCall) -> Answer:
    """Show the workers that own partitions.

    The log holds claims only. So a worker without partitions is not listed, and a worker that was killed is listed until another
    one takes over.
    """
    partitions = await call.service.partitions()
    shown = {one.partition: one for one in await _partitions(call, partitions)}
    workers = [
        WorkerNow(
            worker=one.worker,
            host=one.host,
            pid=one.pid,
            since=utc(one.since),
            partitions=[shown[each.partition] for each in one.partitions],
        )
        for one in workers_in(partitions)
    ]
    return Answer(WorkersNow(workers=workers, unowned=[one.partition for one in partitions if one.owner is None]))


class ProjectionNow(BaseModel):
    """How far a projection is in one partition. `stopped`: why it has stopped; null if it has not. `rebuilding`: this server
    rebuilds it from the beginning of the log."""

    projection: str
    partition: int
    position: int
    end: int
    behind: int
    stopped: str | None
    rebuilding: bool


class ProjectionsNow(BaseModel):
    """The projections that the server keeps."""

    projections: list[ProjectionNow]


async def get_projections(call: HttpCall) -> Answer:
    """Show how far the projections are."""
    return Answer(await _projections(call, call.service.rebuilding))


async def _projections(call: HttpCall, rebuilding: Collection[str]) -> ProjectionsNow:
    lags = lags_for(call.caller, await call.service.projections.lag())
    return ProjectionsNow(
        projections=[
            ProjectionNow.model_validate(lag._asdict() | {"behind": lag.behind, "rebuilding": lag.projection in rebuilding})
            for lag in lags
        ]
    )


async def post_rebuild(call: HttpCall) -> Answer:
    """Empty the tables of a projection, and rebuild them from the whole log.

    `GET /v1/projections` shows how far the rebuild is.
    """
    begin_rebuild(call, call.path["name"], sender_of(call))
    return Answer(await _projections(call, set(call.service.rebuilding)), 202)  # the rebuild of a small one may have ended by now


def begin_rebuild(call: HttpCall, name: str, asked: Sender) -> None:
    """Begin a rebuild. Raises HttpRefusal if the server does not keep the projection, and if a rebuild is under way."""
    if name not in call.service.projections.names:
        raise HttpRefusal(404, "projection-unknown", "this server keeps no projection of this name")
    if not call.service.rebuild(name, asked):
        raise HttpRefusal(409, "rebuild-under-way", "this projection is being rebuilt already")


class ErrorsWanted(BaseModel, extra="forbid"):
    """Filters of groups: the workflow, and the time of the last error."""

    workflow: Name | None = None
    after: Time | None = None
    limit: Annotated[int, Field(ge=1, le=1000)] = 50


class ErrorsAlike(BaseModel):
    """A group of similar errors. `likeness`, the text that they share, and `sample`, the text of the last one, are null for
    callers who may not see payloads."""

    fingerprint: str
    workflow: str
    step: str
    type: str
    likeness: str | None
    sample: str | None
    count: int
    first_at: datetime
    last_at: datetime
    last_run_id: str


class ErrorsNow(BaseModel):
    """Groups of errors, that with the newest error first."""

    errors: list[ErrorsAlike]


async def get_errors(call: HttpCall) -> Answer:
    """Show groups of similar errors."""
    asked: ErrorsWanted = call.query
    await reach(call.service, call.request)
    groups = await call.service.projections.query(list_errors, workflow=asked.workflow, after=asked.after, limit=asked.limit)
    hidden: dict[str, Any] = {} if call.caller.may(Role.PAYLOAD) else {"likeness": None, "sample": None}
    return Answer(ErrorsNow(errors=[ErrorsAlike.model_validate(asdict(group) | hidden) for group in groups]))


class MinutesWanted(BaseModel, extra="forbid"):
    """The time to count, up to a day, the last hour by default; and the workflow, all by default."""

    after: Time | None = None
    before: Time | None = None
    workflow: Name | None = None


class MinutesNow(BaseModel):
    """The minutes in which something happened, the oldest first."""

    minutes: list[Minute]


async def get_minutes(call: HttpCall) -> Answer:
    """Count the events of runs by the minute."""
    asked: MinutesWanted = call.query
    try:
        before = asked.before or datetime.fromtimestamp(call.service.client.log.now() / 1000 + 60, UTC)
        after = asked.after or before - timedelta(hours=1)
    except OverflowError:
        after = before = datetime.min.replace(tzinfo=UTC)
    if not timedelta() <= before - after <= timedelta(minutes=MOST_MINUTES):
        raise HttpRefusal(422, "span-invalid", f"from `after` to `before` there may be up to {MOST_MINUTES:,} minutes")
    await reach(call.service, call.request)
    minutes = await call.service.projections.query(list_minutes, after=after, before=before, workflow=asked.workflow)
    return Answer(MinutesNow(minutes=minutes))


def _row(path: str, name: str, handler: Any, model: type[BaseModel], **options: Any) -> Row:
    return Row(method="GET", path=path, role=Role.VIEW, name=name, handler=handler, answers={200: model}, **options)


ROWS = (
    _row("/v1/partitions", "list_partitions", get_partitions, PartitionsNow),
    _row("/v1/workers", "list_workers", get_workers, WorkersNow),
    _row("/v1/projections", "list_projections", get_projections, ProjectionsNow),
    Row(
        method="POST",
        path="/v1/projections/{name}/rebuild",
        role=Role.ADMIN,
        name="rebuild_projection",
        handler=post_rebuild,
        body=Asking,
        answers={202: ProjectionsNow},
    ),
    _row("/v1/errors", "list_errors", get_errors, ErrorsNow, query=ErrorsWanted, headers=(POSITION,)),
    _row("/v1/minutes", "list_minutes", get_minutes, MinutesNow, query=MinutesWanted, headers=(POSITION,)),
)
