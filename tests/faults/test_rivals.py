"""Two processes that both take all partitions of a SQLite file to be theirs: they fence each other, and nothing is done wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from fleet import Fleet, until
from machine import require_root
from rawlog import Audit, SQLiteHistory, pid_of

FIGHTS = 40

HIDE_MEMBERS = 'mount -t tmpfs tmpfs "$0" && exec "$@"'


@pytest.mark.root
async def test_rivals_fence_each_other(tmp_path: Path) -> None:
    require_root()
    with Fleet(f"sqlite:///{tmp_path}/log.db", tmp_path, seed=0) as fleet:
        history, audit = SQLiteHistory(tmp_path / "log.db"), Audit()
        client = fleet.client(rate=5)
        one = fleet.worker()
        await until(lambda: audit.counts.ends.total() > 0, history, audit)
        members = str(tmp_path / "log.db.members")
        other = fleet.worker(within=["unshare", "--mount", "sh", "-c", HIDE_MEMBERS, members])
        await until(lambda: audit.counts.takeovers >= FIGHTS, history, audit)
        while_they_fought = audit.counts.ends.total()
        owners = {pid_of(claim.owner) for partition in audit.partitions.values() for claim in partition.claims if claim.owner}
        assert owners == {one.pid, other.pid}
        fleet.kill(other)
        print(await fleet.finish(client, history, audit))
    print(f"{while_they_fought} runs ended in the meantime")
