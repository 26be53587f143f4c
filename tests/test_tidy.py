"""The house rules, as tests. A limit here is today's and only moves down; an exception is named here, with its reason."""

import ast
import graphlib
import importlib
import inspect
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT, tracked

ROOMS = ("engine", "drivers", "projections")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAX_LINES = 850

# The modules of which coverage asks every branch: pure, as is whatever they import.
PURE_CORE: list[str] = PYPROJECT["tool"]["coverage"]["run"]["include"]
# fmt: off
IMPURE = frozenset([
    "aiokafka", "concurrent", "fcntl", "http", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "sqlalchemy", "sqlite3", "ssl", "subprocess", "tempfile", "threading",
    "time", "urllib", "uuid",
])
# fmt: on
IMPURE_ALLOWED = {
    ("engine/loop.py", "os"): "os.sep, to tell whose source file asked",
    ("engine/loop.py", "pathlib"): "as os",
    ("engine/retry.py", "random"): "the type of a parameter",
}

# Which room may import which, beside itself.
MAY_IMPORT = {
    "engine": (),
    "engine/testing": ("engine",),
    "engine/cli": ("engine", "engine/testing", "drivers", "projections"),
    "drivers": ("engine",),
    "projections": ("engine",),
}
MAY_IMPORT_TOO = {
    ("engine/client.py", "drivers"): "a URL names a driver: the one place where the engine asks for one",
}

# Hosts of package registries (a lock file would bring them in) and paths of somebody's machine.
UNWANTED_ALLOWED = {
    "tests/kafka_container.py": "a folder inside the container",
}
UNWANTED = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|maven(?:\.apache)?|sonatype)\.(?:org|com)\b|(?<![\w.>])/(?:tmp|root|work|home/\w+)/"
)

SUPPRESSION = re.compile(
    r"#\s*(?:noqa|type:\s*ignore|pyright:\s*ignore|pragma:\s*no (?:cover|branch))\b(?P<rule>[\w\s,:\[\]]*?)(?P<reason>[#–—-].*)?$"
)


MODULES = {path: ast.parse((ROOT / path).read_text()) for path in tracked(*(f"{room}/*.py" for room in ROOMS))}


def module_name(path: str) -> str:
    """`engine/log.py` is `stepfold.log`."""
    parts = list(Path(path).with_suffix("").parts)
    parts = ["stepfold", *parts[1:]] if parts[0] == "engine" else ["stepfold", *parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in MODULES}


def imports(path: str, *, typing_too: bool = True) -> Iterator[str]:
    """The full names of what a module imports, wherever in it: modules, or modules with a name from them."""
    name = module_name(path)
    package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
    for node in _walk(MODULES[path], typing_too=typing_too):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _walk(tree: ast.AST, *, typing_too: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if not typing_too and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _walk(node, typing_too=typing_too)


def ours(full_name: str) -> str | None:
    """The path of the module of ours that an import means."""
    return PATHS.get(full_name) or PATHS.get(full_name.rpartition(".")[0])


def room(path: str) -> str:
    return max((name for name in MAY_IMPORT if path.startswith(f"{name}/")), key=len)


def nothing(offending: Iterable[str]) -> None:
    """A plain list, one line each: what is wrong, and where."""
    if found := sorted(offending):
        pytest.fail("\n".join(found), pytrace=False)


def test_every_module_says_what_it_is_for() -> None:
    nothing(f"{path} has no docstring" for path, tree in MODULES.items() if not ast.get_docstring(tree))


def test_no_file_is_too_long() -> None:
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in tracked("*.py", "*.md")}
    nothing(f"{path} has {lines} lines" for path, lines in lengths.items() if lines > MAX_LINES)


def test_rooms_import_one_way() -> None:
    crossing = {(path, room(target)) for path in MODULES for name in imports(path) if (target := ours(name))}
    offending = {(path, there) for path, there in crossing if there not in (room(path), *MAY_IMPORT[room(path)])}
    nothing(f"{path} imports {there}" for path, there in offending - MAY_IMPORT_TOO.keys())
    assert offending == MAY_IMPORT_TOO.keys(), "an exception that nothing needs any more"


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {
        path: {target for name in imports(path, typing_too=False) if (target := ours(name)) and target != path}
        for path in MODULES
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_driver_knows_no_other_driver() -> None:
    def family(path: str) -> str:
        return Path(path).stem.partition("_")[0]  # kafka_topics is of kafka; _local and __init__ are nobody's

    drivers = [path for path in MODULES if room(path) == "drivers" and family(path)]
    pairs = ((path, target) for path in drivers for name in imports(path) if (target := ours(name)) and room(target) == "drivers")
    nothing(f"{path} imports {target}" for path, target in pairs if family(target) not in ("", family(path)))


def test_nothing_is_imported_by_the_name_of_its_folder() -> None:
    """From the root `import engine` succeeds, and gives a second copy of every class."""
    rooms = "|".join(ROOMS)
    pattern = re.compile(rf"^\s*(?:import\s+(?:{rooms})\b|from\s+(?:{rooms})[\w.]*\s+import\b)", re.MULTILINE)
    nothing(path for path in tracked("*.py", "*.md") if pattern.search((ROOT / path).read_text()))


def test_the_pure_core_is_pure() -> None:
    nothing(f"{path} does not exist" for path in PURE_CORE if path not in MODULES)
    reached, waiting = set[str](), set(PURE_CORE)
    while waiting:
        path = waiting.pop()
        reached.add(path)
        waiting |= {target for name in imports(path) if (target := ours(name))} - reached
    impure = {(path, name.partition(".")[0]) for path in reached for name in imports(path) if name.partition(".")[0] in IMPURE}
    calls = {
        (path, node.func.id)
        for path in reached
        for node in ast.walk(MODULES[path])
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("open", "print", "input", "__import__")
    }
    nothing(f"{path} uses {name}" for path, name in (impure | calls) - IMPURE_ALLOWED.keys())
    assert impure == IMPURE_ALLOWED.keys(), "an exception that nothing needs any more"


def test_every_suppression_has_a_reason() -> None:
    without = list[str]()
    for path in tracked("*.py"):
        lines = (ROOT / path).read_text().splitlines()
        for number, line in enumerate(lines, 1):
            found = SUPPRESSION.search(line)
            if found and not (found["rule"].strip(" :") and len(found["reason"] or "") > 10):
                without.append(f"{path}:{number}: {line.strip()}")
            if re.match(r"# pyright: (?!ignore)", line) and not re.match(r"# (?!pyright)", lines[number]):
                without.append(f"{path}:{number}: say below it why")
    nothing(without)


def test_no_tracked_file_names_a_registry_or_somebodys_folders() -> None:
    nothing(
        f"{path}:{number}: {line.strip()[:100]}"
        for path in tracked()
        if path not in UNWANTED_ALLOWED
        for number, line in enumerate((ROOT / path).read_text(errors="replace").splitlines(), 1)
        if UNWANTED.search(line)
    )
    assert tracked("*.lock") == [], "a lock file names registries; constraints.txt pins the versions"


@pytest.mark.parametrize("name", ["stepfold", "stepfold.drivers", "stepfold.projections", "stepfold.testing"])
def test_everything_public_is_documented(name: str) -> None:
    module = importlib.import_module(name)
    things = {f"{name}.{public}": getattr(module, public) for public in module.__all__}
    if name == "stepfold":  # elsewhere methods are those of a port or of a suite, which says what they do
        methods = (
            (f"{place}.{method}", value)
            for place, thing in things.items()
            if inspect.isclass(thing)
            for method, value in vars(thing).items()
        )
        things |= {place: value for place, value in methods if "._" not in place}
    nothing(f"{place} has no docstring" for place, thing in things.items() if _silent(thing))


def _silent(thing: Any) -> bool:
    """Whether something that can have a docstring of its own has none. A dataclass without one is given its signature."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, property)):
        return False
    own = thing.__doc__ or ""
    return not own.strip() or (inspect.isclass(thing) and own.startswith(f"{thing.__name__}("))


def test_every_command_is_in_the_handbook() -> None:
    import typer.main

    from stepfold.cli.app import app

    text = (ROOT / "docs/cli.md").read_text()
    commands = dict(_commands(typer.main.get_command(app), "stepfold"))
    assert commands
    missing = [name for name in commands if f"`{name}" not in text]
    missing += [f"{name} {option}" for name, options in commands.items() for option in options if option not in text]
    nothing(f"docs/cli.md does not mention {what}" for what in missing)


def _commands(command: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield name, [max(p.opts, key=len) for p in command.params if p.param_type_name == "option" and not p.hidden]
    for part, below in subcommands.items():
        if not below.hidden:
            yield from _commands(below, f"{name} {part}")
