"""The API reference, made from the docstrings by pdoc: `make docs` writes it to build/docs. A warning of pdoc is an error."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, get_type_hints

import pdoc
import pdoc.render

import stepfold.drivers
from stepfold.projections import audit

MODULES = [
    "stepfold",
    "stepfold.events",
    "stepfold.log",
    "stepfold.drivers",
    "stepfold.http",
    "stepfold.projections",
    "stepfold.projections.audit",
    "stepfold.testing",
    "stepfold.testing.pytest_plugin",
]


def main(folder: Path) -> None:
    for name in stepfold.drivers.__all__:  # loaded when they are first asked for, which pdoc does not do
        setattr(stepfold.drivers, name, getattr(stepfold.drivers, name))
    for record in (
        stepfold.Signal,
        stepfold.RaceResult,
        stepfold.Published,
        stepfold.StateChanged,
        audit.Finding,
    ):  # a NamedTuple's own __new__ does not know the module of its annotations
        new: Any = vars(record)["__new__"].__func__
        new.__annotations__ = get_type_hints(record)
    warnings.simplefilter("error")
    pdoc.render.configure(docformat="markdown", footer_text="stepfold", show_source=False)
    pdoc.pdoc(*MODULES, output_directory=folder)
    print(f"{folder}/stepfold.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
