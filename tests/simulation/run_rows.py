"""What the projection of the runs holds, in one reading, so that rows and positions belong together."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from stepfold.projections import RunsProjection
from stepfold.projections.feed import POSITIONS


def positions_and_rows(connection: sa.Connection) -> tuple[dict[int, int], list[dict[str, Any]]]:
    """By partition what is applied, and the rows in the order of their run ids."""
    runs = RunsProjection.metadata.tables["stepfold_runs"]
    of_runs = POSITIONS.c.projection == RunsProjection.name
    positions = connection.execute(sa.select(POSITIONS.c.partition, POSITIONS.c.position).where(of_runs))
    rows = connection.execute(runs.select().order_by(runs.c.run_id))
    return dict(positions.tuples().all()), [dict(row) for row in rows.mappings()]
