"""The guide to monitoring, and the files of `deploy/`, name the metrics that there are, and all of them."""

from __future__ import annotations

import re
from pathlib import Path

from http_served import served
from prometheus_client.parser import text_string_to_metric_families
from repository import ROOT

from stepfold import Client
from stepfold.exposition import exposed
from stepfold.worker.metrics import Metrics

NAME = re.compile(r"\bstepfold_[a-z_]+")
GUIDE = (ROOT / "docs/guides/monitoring.md").read_text()


def names_of(text: str) -> dict[str, str]:
    """The metrics of a page with their kinds, by the names that a query has; of a histogram, that of the whole."""
    families = text_string_to_metric_families(text)
    return {f"{one.name}_total" if one.type == "counter" else one.name: one.type for one in families}


async def served_names(folder: Path) -> dict[str, str]:
    async with served(Client(f"sqlite:///{folder}/log.db")) as browser:
        return names_of((await browser.get("/metrics")).text)


def worker_names() -> dict[str, str]:
    return names_of(exposed(Metrics(lambda workflow: True).collect()).decode())


def tables() -> list[set[str]]:
    return [set(re.findall(r"^\| `(stepfold_\w+)` \|", part, re.MULTILINE)) for part in GUIDE.split("\n## ")]


async def test_the_guide_has_a_row_for_each_metric(tmp_path: Path) -> None:
    of_server, of_worker = await served_names(tmp_path), worker_names()
    assert [table for table in tables() if table] == [set(of_server), set(of_worker)]
    assert not set(of_server) & set(of_worker)


async def test_names_and_units_are_those_of_prometheus(tmp_path: Path) -> None:
    for name, kind in {**await served_names(tmp_path), **worker_names()}.items():
        assert re.fullmatch(r"stepfold(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(r"_(ms|milliseconds|minutes|kb|percent)\b", name), name
        assert kind != "histogram" or name.endswith("_seconds"), name
