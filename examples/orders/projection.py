"""Two tables that follow the log: every order, and what the shop earns a day.

python projection.py          brings them up to date, in shop.db, and prints the revenue
"""

from __future__ import annotations

import asyncio
from datetime import date

import sqlalchemy as sa
from pydantic import ValidationError
from workflow import Order, Outcome, client, process_order

from stepfold import Client
from stepfold.events import Cancelled, Completed, Failed, RunEvent, Started
from stepfold.projections import Projection, ProjectionRunner, RunSoFar

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


class ShopProjection(Projection):
    """Rows and position are committed together, so each event counts exactly once, also after a crash."""

    name = "shop"
    version = 1  # raise it when the tables or their meaning change: they are built anew
    metadata = metadata

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
