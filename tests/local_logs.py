"""The logs that need nothing but this machine, as fixtures give them to tests."""

from __future__ import annotations

from collections.abc import Callable

from stepfold.log import Log

NewLog = Callable[[], Log]
"""Each call gives another driver on one and the same log, as another process would have it."""
