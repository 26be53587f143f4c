"""What users install: a wheel, built from what git would publish, with nothing of this repository around it."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from repository import ROOT, tracked
from uv import find_uv_bin

PACKAGES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

# Every module must be there and load with the plain dependencies: what an extra brings is imported where it is needed. Only some
# are all of an extra. The plugin for pytest is loaded by pytest alone.
IMPORT_EVERYTHING = """
import importlib, pkgutil, sys, stepfold
assert "site-packages" in stepfold.__file__, stepfold.__file__
names = [module.name for module in pkgutil.walk_packages(stepfold.__path__, "stepfold.")]
names.remove("stepfold.testing.pytest_plugin")
of_extras = "stepfold.http", "stepfold.exposition", "stepfold.worker.metrics", "stepfold.worker.traces"
for name in names:
    if "extras" in sys.argv or not name.startswith(of_extras):
        importlib.import_module(name)
print(*names)
"""


def uv(*arguments: str | Path, cwd: Path = ROOT) -> None:
    pins = {"UV_CONSTRAINT": str(ROOT / "constraints.txt"), "UV_BUILD_CONSTRAINT": str(ROOT / "constraints.txt")}
    subprocess.run([find_uv_bin(), "--quiet", *arguments], cwd=cwd, env={**os.environ, **pins}, check=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in tracked():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_bytes((ROOT / file).read_bytes())
    uv("build", "--wheel", "--out-dir", out, source)
    return next(out.glob("*.whl"))


def test_it_holds_every_module_and_the_marker_for_type_checkers(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(ROOT / "engine") for path in (ROOT / "engine").rglob("*.py")}
    sources |= {path.relative_to(ROOT) for room in ("drivers", "projections") for path in (ROOT / room).rglob("*.py")}
    assert {f"stepfold/{path}" for path in sources} == {name for name in names if name.endswith(".py")}
    assert "stepfold/py.typed" in names
    files = {path for path in tracked("engine/http/*") if not path.endswith(".py")}
    assert files
    assert {path.replace("engine/", "stepfold/", 1) for path in files} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_it_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    uv("venv", "--python", sys.executable, "env", cwd=tmp_path)
    uv("pip", "install", "--python", "env", wheel, cwd=tmp_path)
    bin_ = tmp_path / "env" / "bin"
    ran = subprocess.run(
        [bin_ / "python", "-I", "-c", IMPORT_EVERYTHING], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    assert {name for name in PACKAGES[1:] if not name.startswith("stepfold.http.")} <= set(ran.stdout.split())
    helped = subprocess.run([bin_ / "stepfold", "--help"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True)
    assert "demo" in helped.stdout
    served = subprocess.run([bin_ / "stepfold", "serve"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    assert (served.returncode, "pip install 'stepfold[web]'" in served.stderr) == (2, True), served.stderr
    uv("pip", "install", "--python", "env", f"{wheel}[web,metrics,otel]", cwd=tmp_path)
    ran = subprocess.run(
        [bin_ / "python", "-I", "-c", IMPORT_EVERYTHING, "extras"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
    )
    assert set(PACKAGES[1:]) <= set(ran.stdout.split())
