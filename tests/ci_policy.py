"""CI is stricter: with `CI=true` in the environment, nothing that needs Kafka, Docker, root, PostgreSQL or Chromium may skip.

A skip there would let CI pass on a machine that has tested nothing of what matters. Loaded by conftest.py.
"""

import os
from collections.abc import Generator

import pytest

STRICT = os.environ.get("CI") == "true"
NEEDED = ("kafka", "docker", "root", "postgres", "browser")


@pytest.hookimpl(wrapper=True, tryfirst=True)  # outermost: sees what every other plugin made of it
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needs = [name for name in NEEDED if item.get_closest_marker(name)]
    if STRICT and report.skipped and needs and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow a {needs[0]} test: {_reason(report)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if STRICT and report.skipped:  # nobody can know what tests a skipped module has
        report.outcome = "failed"
        report.longrepr = f"skipped as a whole, which CI does not allow: {_reason(report)}"
    return report


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
