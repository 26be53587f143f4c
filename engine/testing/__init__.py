"""What helps to test: virtual time for workflows, and the conformance suite for drivers."""

from .suite import LogSuite
from .virtual import START_MS, VirtualDeadlock, VirtualTimeLoop, run_virtual

__all__ = ["START_MS", "LogSuite", "VirtualDeadlock", "VirtualTimeLoop", "run_virtual"]
