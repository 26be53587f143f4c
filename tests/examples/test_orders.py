"""`examples/orders`: its own tests, and its README's session on a real Kafka with a worker that is killed in between."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from repository import ROOT
from shell import Shell, until

ORDERS = ROOT / "examples" / "orders"


def test_its_own_tests_pass(tmp_path: Path) -> None:
    shutil.copytree(ORDERS, tmp_path / "orders")
    command = [sys.executable, "-m", "pytest", "-q", "-W", "ignore::pytest.PytestDeprecationWarning", "test_orders.py"]
    done = subprocess.run(command, cwd=tmp_path / "orders", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout


def test_the_producer_knows_nothing_of_stepfold() -> None:
    imports = [line for line in (ORDERS / "producer.py").read_text().splitlines() if line.startswith(("import ", "from "))]
    assert not [line for line in imports if "stepfold" in line or "workflow" in line]


@pytest.fixture
def shop(kafka_bootstrap: str, tmp_path: Path) -> Iterator[Shell]:
    """The example's folder, on a namespace of its own."""
    shutil.copytree(ORDERS, tmp_path / "orders")
    shell = Shell(tmp_path / "orders")
    shell.env["STEPFOLD_URL"] = f"kafka://{kafka_bootstrap}/orders-{uuid4().hex[:12]}?session_timeout_s=6"
    shell("topics", "create", "--partitions", "4", "--replication", "1")
    yield shell
    shell.close()


def python(shell: Shell, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=shell.folder, env=shell.env, capture_output=True, text=True, check=True).stdout


@pytest.mark.kafka
def test_orders_from_a_foreign_producer_survive_the_death_of_their_worker(shop: Shell) -> None:
    bootstrap, _, namespace = shop.env["STEPFOLD_URL"].partition("?")[0].removeprefix("kafka://").partition("/")

    def order(order_id: str, *options: str) -> None:
        assert python(shop, "producer.py", bootstrap, namespace, order_id, *options) == f"asked for order-{order_id}\n"

    worker = shop.start("worker", "workflow:client")
    order("42")
    order("42")  # the same request again
    order("43", "--total-cents", "250000")
    order("44", "--customer", "mallory")
    order("45", "--total-cents", "-1")
    until(lambda: len(shop.json("run", "list")) == 3)
    until(lambda: any("'approve'" in words for words in shop.json("run", "show", "order-43")["waiting_on"]))
    worker.kill()
    worker.wait()
    shop("run", "signal", "order-43", "approve", "--data", '{"granted": true, "by": "grace"}')
    shop.start("worker", "workflow:client")
    shop("run", "watch", "order-42")
    shop("run", "watch", "order-43")
    assert "services.CardDeclined: mallory has no credit" in shop("run", "watch", "order-44", code=1).stderr
    [letter] = shop.json("inbox", "dead-letters")
    assert "total_cents: Input should be greater than 0" in letter["reason"]

    steps = {step["step_id"]: step for step in shop.json("run", "show", "order-43")["steps"]}
    assert list(steps) == ["reserve", "charge", "approval", "ship"]
    assert steps["reserve"]["attempts"] == steps["charge"]["attempts"] == 1  # recorded before the kill: not run again
    assert steps["ship"]["attempts"] - steps["ship"]["lost"] == 1
    [revenue] = python(shop, "projection.py").splitlines()
    assert revenue.endswith("2 orders  2629.00")
    assert python(shop, "projection.py") == revenue + "\n"
