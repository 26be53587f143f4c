"""The guide to monitoring, and the files of `deploy/`, name the metrics that there are, and all of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import orjson
import pytest
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


# -- deploy/

RULES = ROOT / "deploy/prometheus/stepfold.rules.yml"
DASHBOARD = orjson.loads((ROOT / "deploy/grafana/stepfold.json").read_bytes())
QUERIES: list[str] = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def queried(text: str) -> set[str]:
    """The metrics in queries, without the parts of histograms."""
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in NAME.findall(text)}


async def test_the_dashboard_shows_each_metric_and_no_other(tmp_path: Path) -> None:
    assert queried("\n".join(QUERIES)) == set(await served_names(tmp_path)) | set(worker_names())


async def test_the_alerts_are_about_metrics_that_there_are(tmp_path: Path) -> None:
    expressions = re.findall(r"^\s+expr: (.*)$", RULES.read_text(), re.MULTILINE)
    assert len(expressions) == RULES.read_text().count("- alert: ") == 8
    assert queried("\n".join(expressions)) <= set(await served_names(tmp_path)) | set(worker_names())


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) == len({panel["id"] for panel in DASHBOARD["panels"]})


@pytest.mark.skipif(shutil.which("promtool") is None and not os.environ.get("CI"), reason="needs promtool: Debian's prometheus")
def test_promtool_accepts_alerts_queries_and_pages(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yml"
    queries = [{"record": f"q:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    rules.write_bytes(orjson.dumps({"groups": [{"name": "dashboard", "rules": queries}]}))  # JSON is YAML
    for file in (RULES, rules):
        subprocess.run(["promtool", "check", "rules", file], check=True, capture_output=True)
    page = exposed(Metrics(lambda workflow: True).collect())
    subprocess.run(["promtool", "check", "metrics"], input=page, check=True, capture_output=True)
