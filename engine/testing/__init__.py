"""Tools for tests: virtual time for workflows, simulated processes, a log that fails, and the conformance suite for drivers."""

from .faulty import FAULTS, FaultyDriver, FaultyLog
from .processes import Process, ProcessLoop
from .suite import LogSuite
from .virtual import START_MS, VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_clock

__all__ = [
    "FAULTS",
    "START_MS",
    "FaultyDriver",
    "FaultyLog",
    "LogSuite",
    "Process",
    "ProcessLoop",
    "VirtualDeadlock",
    "VirtualTimeLoop",
    "run_virtual",
    "virtual_clock",
]
