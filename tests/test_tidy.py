"""The house rules, as tests. A limit here is today's and only moves down; an exception is named here, with its reason."""

import ast
import graphlib
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT, tracked

from stepfold import operations
from stepfold.core import lifecycle
from stepfold.core.records import Base

ROOMS = ("engine", "drivers", "projections")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

MAX_LINES = 850

# The most lines of a file, a class and a function of the package.
MAX_FILE, MAX_CLASS, MAX_FUNCTION = 600, 400, 60

# The modules of which coverage asks every branch, and those of values: pure, as is whatever they import.
PURE_CORE = tracked(*PYPROJECT["tool"]["coverage"]["run"]["include"], "engine/values/*.py")
# fmt: off
IMPURE = frozenset([
    "aiokafka", "concurrent", "fcntl", "http", "io", "logging", "mmap", "multiprocessing", "os", "pathlib", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "sqlalchemy", "sqlite3", "ssl", "subprocess", "tempfile", "threading",
    "time", "urllib", "uuid",
])
# fmt: on
IMPURE_ALLOWED = {
    ("engine/operations/condition.py", "random"): "the type of a parameter",
    ("engine/values/backoff.py", "random"): "the type of a parameter",
    ("engine/values/exact.py", "uuid"): "the type of a value",
    ("engine/replay/frames.py", "os"): "os.sep, to tell whose source file asked",
    ("engine/replay/frames.py", "pathlib"): "as os",
    ("engine/values/retry.py", "random"): "the type of a parameter",
    ("engine/values/same.py", "uuid"): "the type, to compare what has it",
    ("engine/values/taken.py", "io"): "the types of values",
    ("engine/values/taken.py", "uuid"): "as io",
}

# Which room may import which, beside itself.
MEASURED = ("engine/core", "engine/operations", "engine/replay")
PURE = (*MEASURED, "engine/values")
ENGINE = ("engine", *PURE, "engine/authoring", "engine/client", "engine/worker")
MAY_IMPORT = {
    "engine": ENGINE,
    "engine/core": ("engine", "engine/operations", "engine/values"),
    "engine/operations": ("engine", "engine/core", "engine/values"),
    "engine/replay": ("engine", "engine/core", "engine/operations", "engine/values"),
    "engine/values": ("engine",),
    "engine/authoring": ("engine", *PURE),
    "engine/worker": ("engine", *PURE, "engine/authoring"),
    "engine/client": ("engine", *PURE, "engine/authoring", "engine/worker"),
    "engine/testing": ENGINE,
    "engine/http": (*ENGINE, "projections"),
    "engine/cli": (*ENGINE, "engine/testing", "engine/http", "drivers", "projections"),
    "drivers": ENGINE,
    "projections": ENGINE,
}
MAY_IMPORT_TOO = {
    ("engine/worker/router.py", "engine/client"): "a request is the same record, whoever asks",
    ("engine/client/client.py", "drivers"): "a URL names a driver: the one place where the engine asks for one",
    ("engine/testing/pytest_plugin.py", "projections"): "the audit replays what users' tests have run",
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

# How comments, docstrings and documents do not speak: "is no" for "is not a", and sentences whose subject is a clause.
ODD = re.compile(r"(?<!(?i:there) )\bis no (?!longer\b)|(?:^|(?<=[.:?!] ))(?:What|Who|Whoever|Whatever)\b")

MODULES = {path: ast.parse((ROOT / path).read_text()) for path in tracked(*(f"{room}/*.py" for room in ROOMS))}

SHARED_BY_KINDS = tracked(*(f"engine/operations/{name}.py" for name in ("attempted", "call", "kind", "line", "told")))
KINDS = [path for path in tracked("engine/operations/*.py") if path not in (*SHARED_BY_KINDS, "engine/operations/__init__.py")]
VALUES = tracked("engine/values/*.py", "engine/errors.py")
WORDS_OF_KINDS = {
    *(name for kind in operations.KINDS for name in (kind.open.__name__, kind.call.__name__)),
    *(kind.notice.__name__ for kind in operations.TOLD),
    *(
        name
        for kind in (*operations.KINDS, *operations.TOLD)
        for record in kind.records
        for name in (record.__name__, record.model_fields["type"].default)
    ),
} - {
    "StepFailed",
    "CallbackFailed",
    "CallbackTimedOut",
    "ChildTimedOut",
    "ConditionTimedOut",
    "Published",
    "published",
}  # so errors, or what users get, are called, too
YIELDED = {"Published"}
KNOW_A_KIND = {
    "engine/events.py": "all records by their names, and the union of them, which type checkers read",
    "engine/authoring/step.py": "what users call",
    "engine/authoring/condition.py": "as step.py",
    "engine/authoring/publishing.py": "as step.py",
    "engine/authoring/children.py": "as step.py",
    "engine/worker/owner/attempts.py": "attempts of steps and conditions are the worker's",
    "engine/client/requests.py": "what users send",
    "engine/worker/inbox.py": "what anyone sends",
    "engine/cli/demo.py": "it waits for its own workflow",
}


# Where a variable has a better name than `found`, and the modules in which it is what the code of a run came to.
SAYS_FOUND = ("engine/core", "engine/operations", "engine/replay", "engine/authoring", "engine/worker", "engine/client")
FOUND_BY_REPLAY = ("engine/operations/call.py", "engine/replay/execution.py", "engine/replay/refusals.py")


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


def test_files_classes_and_functions_are_short() -> None:
    nothing(f"{name} has {lines} lines" for path in MODULES for name, lines in _too_long(path))


def _too_long(path: str) -> Iterator[tuple[str, int]]:
    lines = len((ROOT / path).read_text().splitlines())
    if lines > MAX_FILE:
        yield path, lines
    for name, node in _definitions(MODULES[path]):
        assert node.end_lineno is not None
        lines = node.end_lineno - node.lineno + 1
        if lines > (MAX_CLASS if isinstance(node, ast.ClassDef) else MAX_FUNCTION):
            yield f"{path} {name}", lines


def _definitions(tree: ast.AST, within: str = "") -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Classes, and functions at any depth, by their names with those of the classes and functions around them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield within + node.name, node
            yield from _definitions(node, f"{within}{node.name}.")
        else:
            yield from _definitions(node, within)


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
        return Path(path).parts[1].removesuffix(".py").partition("_")[0]  # _local and __init__ are nobody's

    drivers = [path for path in MODULES if room(path) == "drivers" and family(path)]
    pairs = ((path, target) for path in drivers for name in imports(path) if (target := ours(name)) and room(target) == "drivers")
    nothing(f"{path} imports {target}" for path, target in pairs if family(target) not in ("", family(path)))


def test_a_kind_of_operation_knows_the_state_and_values_and_no_other_kind() -> None:
    may = {*SHARED_BY_KINDS, *VALUES, "engine/core/messages.py", "engine/core/records.py", "engine/core/state.py"}
    nothing(
        f"{path} imports {target}" for path in KINDS for name in imports(path) if (target := ours(name)) and target not in may
    )


def test_a_kind_of_operation_is_named_in_its_room_alone() -> None:
    """Its records and classes; what every kind has, the others find in the tables of `operations`."""
    mentions = {(path, word) for path in MODULES if path not in KINDS for word in _words(MODULES[path]) if word in WORDS_OF_KINDS}
    offending = {(path, word) for path, word in mentions if path not in KNOW_A_KIND}
    nothing(f"{path} names {word}" for path, word in offending)
    assert {path for path, _ in mentions} >= KNOW_A_KIND.keys(), "an exception that nothing needs any more"


def _words(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_nothing_is_imported_by_the_name_of_its_folder() -> None:
    """From the root `import engine` succeeds, and gives a second copy of every class."""
    rooms = "|".join(ROOMS)
    pattern = re.compile(rf"^\s*(?:import\s+(?:{rooms})\b|from\s+(?:{rooms})[\w.]*\s+import\b)", re.MULTILINE)
    nothing(path for path in tracked("*.py", "*.md") if pattern.search((ROOT / path).read_text()))


def test_two_things_of_one_name_are_told_apart() -> None:
    """`events.StepFailed` is a record and `errors.StepFailed` is raised, `events.Published` is a record and `Published` is what
    `run.watch` yields: of events, such classes are used by their full name."""

    def classes(path: str) -> set[str]:
        return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.ClassDef)}

    records = ("engine/core/lifecycle.py", *KINDS)
    both = {name for path in records for name in classes(path)} & {*classes("engine/errors.py"), *YIELDED}
    assert both
    modules = {"events", *(Path(path).stem for path in records)}
    nothing(
        f"{path}: {node.module}.{alias.name}"
        for path in tracked("*.py")
        if path != "engine/events.py"  # which gives them their full name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[-1] in modules
        for alias in node.names
        if alias.name in both
    )


def test_no_two_classes_have_one_name() -> None:
    """But a record and the error, or what `run.watch` yields, to which it leads: the test above tells them apart."""
    errors = {node.name for node in MODULES["engine/errors.py"].body if isinstance(node, ast.ClassDef)} | YIELDED
    records = {
        record.__name__
        for record in (*lifecycle_records(), *(r for kind in (*operations.KINDS, *operations.TOLD) for r in kind.records))
    }
    paths: dict[str, list[str]] = {}
    for path, tree in MODULES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                paths.setdefault(node.name, []).append(path)
    nothing(f"{name}: {', '.join(where)}" for name, where in paths.items() if len(where) > 1 + (name in errors & records))


def lifecycle_records() -> list[type]:
    return [value for value in vars(lifecycle).values() if inspect.isclass(value) and issubclass(value, Base)]


def test_variables_say_what_they_hold() -> None:
    nothing(f"{path}:{line}: {name}" for path in MODULES for line, name in _bound(MODULES[path]) if _is_vague(path, name))


def _bound(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Variables that are set, and parameters; and `kind` where it is the type of an event."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        if isinstance(node, ast.Assign) and re.match(r"\(?kind\b.*= event\['type'\]", ast.unparse(node)):
            yield node.lineno, "kind, for the type of an event"


def _is_vague(path: str, name: str) -> bool:
    """Whether a name says nothing here. `found` is also a part of NonDeterminism: the thing that the code came to."""
    if name == "found":
        return room(path) in SAYS_FOUND and (path not in FOUND_BY_REPLAY)
    return name == "given" or name.startswith("kind,")


def test_the_pure_core_is_pure() -> None:
    named = PYPROJECT["tool"]["coverage"]["run"]["include"]
    nothing(f"{place} does not exist" for place in named if not tracked(place))
    nothing(f"{folder} is not measured" for folder in MEASURED if f"{folder}/*" not in named)
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


def test_comments_and_docstrings_name_the_actor() -> None:
    nothing(said for path in MODULES for said in _odd(path, (*_docstrings(MODULES[path]), *_comments((ROOT / path).read_text()))))


def test_documents_name_the_actor() -> None:
    nothing(said for path in tracked("*.md") for said in _odd(path, _prose((ROOT / path).read_text())))


def _odd(path: str, texts: Iterable[tuple[int, str]]) -> Iterator[str]:
    for line, text in texts:
        for odd in ODD.finditer(text):
            yield f"{path}:{line}: name who does it: …{text[max(odd.start() - 20, 0) : odd.end() + 40]}…"


def _prose(markdown: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, items of lists and cells of tables, one line each. Not headings, which may be a reader's question, and not
    what is quoted: blocks, and code between backticks."""
    fence, line, block = "", 0, list[str]()
    for number, raw in enumerate([*markdown.splitlines(), ""], 1):
        text, fenced = raw.strip(), bool(fence)
        if opening := re.match(r"`{3,}|~{3,}", text):
            fence = "" if text == fence else fence or opening[0]
        quoted = fenced or bool(fence) or text.startswith("<!--")
        alone = quoted or not text or text[0] in "#|"
        if block and (alone or re.match(r"(?:[-*]|\d+\.) ", text)):
            yield line, _plain(" ".join(block))
            block = []
        if not quoted and text.startswith("|"):
            yield from ((number, _plain(cell)) for cell in text.split("|"))
        elif not alone:
            line = line if block else number
            block.append(text)


def _plain(text: str) -> str:
    """Without the marks of Markdown; `x` stands for code."""
    return re.sub(r"\*\*|^(?:[-*]|\d+\.) ", "", re.sub(r"(`+).+?\1", "x", text)).strip()


def _docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Those of attributes, too. One text each, on one line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, " ".join(node.value.value.split())


def _comments(source: str) -> Iterator[tuple[int, str]]:
    """Lines of one comment together."""
    line, block = -1, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        stands_alone = token.line.lstrip().startswith("#")
        if block and not (stands_alone and token.start[0] == line + len(block)):
            yield line, " ".join(block)
            block = []
        if not block:
            line = token.start[0]
        block.append(token.string.lstrip("# "))
    if block:
        yield line, " ".join(block)


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


def test_the_command_line_prints_in_one_place() -> None:
    """What cannot be seen in text from elsewhere is shown there, so nothing may go past it."""
    allowed = {
        "engine/cli/output.py",
        "engine/cli/demo_producer.py",
        "engine/cli/demo_app.py",
    }  # the last two are programs of users
    modules = [path for path in MODULES if room(path) == "engine/cli" and path not in allowed]
    nothing(f"{path} uses rich.text: use the Text of output.py" for path in modules if "rich.text.Text" in imports(path))
    nothing(f"{path}:{node.lineno} prints: use what output.py has" for path in modules for node in _prints(path))


def _prints(path: str) -> Iterator[ast.Call]:
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node


def test_no_command_is_named_as_a_module_of_python() -> None:
    """A script begins with the folder that it is in: the demo's producer would import its neighbour for Python's own module."""
    names = [Path(path).stem for path in MODULES if path.startswith("engine/cli/")]
    assert names
    nothing(f"engine/cli/{name}.py" for name in names if name in sys.stdlib_module_names)


def test_every_command_is_in_the_handbook() -> None:
    import typer.main

    from stepfold.cli.app import app

    text = (ROOT / "docs/cli.md").read_text()
    commands = dict(_commands(typer.main.get_command(app), "stepfold"))
    assert commands
    missing = [name for name in commands if f"`{name}" not in text]
    missing += [f"{name} {option}" for name, options in commands.items() for option in options if option not in text]
    nothing(f"docs/cli.md does not mention {what}" for what in missing)


TROUBLESHOOTING = "docs/guides/troubleshooting.md"


def test_every_error_is_in_the_troubleshooting_guide() -> None:
    text = (ROOT / TROUBLESHOOTING).read_text()
    classes = [node.name for node in MODULES["engine/errors.py"].body if isinstance(node, ast.ClassDef)]
    errors = [name for name in classes if name != "ErrorInfo"]
    assert errors
    nothing(f"{TROUBLESHOOTING} has no row for {name}" for name in errors if f"| `{name}` |" not in text)


def test_every_warning_is_in_the_troubleshooting_guide() -> None:
    """By a piece of its text between two placeholders, or the beginning of one: one that is long enough, or the longest."""
    text = (ROOT / TROUBLESHOOTING).read_text()
    warnings = {(path, said): [piece.strip(" :;,.(") for piece in re.split(r"%[\d.]*[a-z]", said)] for path, said in _warnings()}
    assert len(warnings) > 40
    nothing(
        f"{path}: {TROUBLESHOOTING} does not say {said!r}"
        for (path, said), pieces in warnings.items()
        if not any(piece[:30] in text for piece in pieces if len(piece) >= min(12, max(map(len, pieces))))
    )


@pytest.mark.slow
def test_every_process_collects_the_same_tests() -> None:
    """pytest-xdist refuses to run tests whose names hold an address or the order of a set."""
    collected: set[str] = set()
    for seed in "12":
        command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet"]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        names = [line for line in done.stdout.splitlines() if "::" in line]
        assert names
        collected.add("\n".join(names))
    assert len(collected) == 1


def _warnings() -> Iterator[tuple[str, str]]:
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id in ("logger", "run_logger", "log")
                and node.func.attr in ("warning", "error", "exception")
            ):
                yield path, ast.literal_eval(node.args[0])


def _commands(command: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    subcommands = getattr(command, "commands", {})
    if not subcommands:
        yield name, [max(p.opts, key=len) for p in command.params if p.param_type_name == "option" and not p.hidden]
    for part, below in subcommands.items():
        if not below.hidden:
            yield from _commands(below, f"{name} {part}")
