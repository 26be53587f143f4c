"""The corpus, what was found before, and some thousand inputs of one seed; `make fuzz` goes on from there."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COUNTS = {"log-file": 12, "tables-file": 12, "kept-rows": 15, "checkpoint": 250}
COUNT = 600

# The modules of a script stand beside it.
sys.path.insert(0, str(HERE))
_spec = importlib.util.spec_from_file_location("fuzz_main", HERE / "__main__.py")
assert _spec is not None and _spec.loader is not None
fuzz: Any = importlib.util.module_from_spec(_spec)
sys.modules["fuzz_main"] = fuzz
_spec.loader.exec_module(fuzz)

FOUND: dict[str, Sequence[int]] = {
    "checkpoint": (65, 92, 1274, 3356),
    "url": (18, 19, 82, 1405, 4787),
    "app": (5,),
    "data": (282,),
    "log-file": (13, 37),
}
"""Inputs of seed 0 that once broke something."""


@pytest.mark.parametrize("target", fuzz.ALL, ids=lambda target: target.name)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_no_input_stops_anything(target: Any) -> None:
    numbers = [*range(COUNTS.get(target.name, COUNT)), *FOUND.get(target.name, ())]
    for number in numbers:
        finding = fuzz.run_one(target, 0, number)
        if finding is not None:
            raise AssertionError(f"make fuzz: --seed 0 --only {target.name} --number {number}") from finding.error


def test_inputs_repeat() -> None:
    for target in fuzz.ALL:
        assert fuzz.input_of(target, 7, 1_000) == fuzz.input_of(target, 7, 1_000)
        assert fuzz.input_of(target, 7, 1_001) != fuzz.input_of(target, 8, 1_001) or target.name == "kept-rows"


def test_a_finding_is_told() -> None:
    def fail(data: bytes) -> None:
        raise KeyError(data)

    finding = fuzz.run_one(fuzz.Target("fails", lambda: [b"x"], fail), 0, 0)
    assert (finding.target, finding.number, finding.data) == ("fails", 0, b"x")
    assert finding.kind.startswith("fails: KeyError")
