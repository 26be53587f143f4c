"""Three tables that follow the log: every order, what the shop earns a day, and how long each step takes.

python projection.py          brings them up to date, in shop.db, and prints the revenue
stepfold serve --projection projection:ShopProjection          shows them on a dashboard
"""

from __future__ import annotations

import asyncio
from datetime import date

import sqlalchemy as sa
from pydantic import ValidationError
from workflow import Order, Outcome, client, process_order

from stepfold import Client
from stepfold.events import Cancelled, Completed, Failed, RunEvent, Started, StepCompleted
from stepfold.projections import Chart, Number, Projection, ProjectionRunner, RunSoFar, TableView

metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    metadata,
    sa.Column("run_id", sa.String(200), primary_key=True),
    sa.Column("order_id", sa.String(200), nullable=False),
    sa.Column("customer", sa.String(200), nullable=False),
    sa.Column("total_cents", sa.BigInteger, nullable=False),
    sa.Column("status", sa.String(20), nullable=False),  # open, shipped, declined, failed, cancelled
)
revenue = sa.Table(
    "revenue",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),  # UTC, on which the order was shipped
    sa.Column("orders", sa.Integer, nullable=False),
    sa.Column("cents", sa.BigInteger, nullable=False),
)
step_times = sa.Table(
    "step_times",
    metadata,
    sa.Column("step", sa.String(200), primary_key=True),
    sa.Column("attempts", sa.Integer, nullable=False),  # that succeeded
    sa.Column("total_ms", sa.BigInteger, nullable=False),
    sa.Column("slowest_ms", sa.BigInteger, nullable=False),
    sa.Column("run_id", sa.String(200), nullable=False),  # of the slowest
)


class ShopProjection(Projection):
    """Rows and position are committed together, so each event counts exactly once, also after a crash."""

    name = "shop"
    version = 2  # raise it when the tables or their meaning change: they are built anew
    metadata = metadata
    pages = (
        Number("Orders", sa.select(sa.func.count()).select_from(orders)),
        Number("Open orders", sa.select(sa.func.count()).where(orders.c.status == "open")),
        Number("Revenue", sa.select(sa.func.coalesce(sa.func.sum(revenue.c.cents), 0) / 100.0), unit="EUR"),
        Chart(
            "Revenue a day",
            sa.select(revenue.c.day, (revenue.c.cents / 100.0).label("revenue")).order_by(revenue.c.day),
            unit="EUR",
        ),
        Chart(
            "Orders by state",
            sa.select(orders.c.status, sa.func.count().label("orders")).group_by(orders.c.status).order_by(sa.desc("orders")),
        ),
        TableView(
            "Slowest steps",
            sa.select(
                step_times.c.step,
                step_times.c.attempts,
                (step_times.c.total_ms // step_times.c.attempts).label("mean, ms"),
                step_times.c.slowest_ms.label("slowest, ms"),
                step_times.c.run_id,
            ).order_by(step_times.c.slowest_ms.desc()),
        ),
    )

    def apply(self, connection: sa.Connection, event: RunEvent, run: RunSoFar) -> None:
        if run.workflow != process_order.id:
            return
        match event:
            case Started():
                self._begin(connection, run)
            case Completed():
                outcome = Outcome.model_validate(event.result)
                self._set_status(connection, run, outcome.status)
                if outcome.status == "shipped":
                    self._earn(connection, run.updated_at.date(), outcome.total_cents)
            case StepCompleted():
                self._time(connection, run, event.step_id, 0 if event.began_at is None else event.at - event.began_at)
            case Failed() | Cancelled():
                self._set_status(connection, run, event.type)
            case _:
                pass

    def _begin(self, connection: sa.Connection, run: RunSoFar) -> None:
        try:
            order = Order.model_validate(run.input)
        except ValidationError:
            return  # asked for while no worker could check it; the run fails, and there is no order
        row = order.model_dump(include={"order_id", "customer", "total_cents"})
        connection.execute(sa.delete(orders).where(orders.c.run_id == run.id))  # an id may be used again a day after its end
        connection.execute(sa.insert(orders).values(run_id=run.id, status="open", **row))

    def _set_status(self, connection: sa.Connection, run: RunSoFar, status: str) -> None:
        connection.execute(sa.update(orders).where(orders.c.run_id == run.id).values(status=status))

    def _time(self, connection: sa.Connection, run: RunSoFar, step: str, ms: int) -> None:
        this = step_times.c.step == step
        more = {"attempts": step_times.c.attempts + 1, "total_ms": step_times.c.total_ms + ms}
        if connection.execute(sa.update(step_times).where(this).values(more)).rowcount == 0:
            row = {"step": step, "attempts": 1, "total_ms": ms, "slowest_ms": ms, "run_id": run.id}
            connection.execute(sa.insert(step_times).values(row))
        slowest = {"slowest_ms": ms, "run_id": run.id}
        connection.execute(sa.update(step_times).where(this, step_times.c.slowest_ms < ms).values(slowest))

    def _earn(self, connection: sa.Connection, day: date, cents: int) -> None:
        more = {"orders": revenue.c.orders + 1, "cents": revenue.c.cents + cents}
        if connection.execute(sa.update(revenue).where(revenue.c.day == day).values(more)).rowcount == 0:
            connection.execute(sa.insert(revenue).values(day=day, orders=1, cents=cents))


def revenue_by_day(connection: sa.Connection) -> list[tuple[date, int, int]]:
    rows = connection.execute(sa.select(revenue.c.day, revenue.c.orders, revenue.c.cents).order_by(revenue.c.day))
    return [(row.day, row.orders, row.cents) for row in rows]


def statuses(connection: sa.Connection) -> dict[str, str]:
    return {row.run_id: row.status for row in connection.execute(sa.select(orders.c.run_id, orders.c.status))}


async def main(client: Client) -> None:
    async with ProjectionRunner(client, [ShopProjection()], database="sqlite:///shop.db") as runner:
        await runner.catch_up()  # a service that keeps them up to date would `await runner.wait()` here
        for day, count, cents in await runner.query(revenue_by_day):
            print(f"{day}  {count} orders  {cents / 100:.2f}")


if __name__ == "__main__":
    asyncio.run(main(client))
