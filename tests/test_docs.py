"""The documents run as printed: every Python block and every console session of README.md, docs/ and their like.

One test per document. Its blocks run in the order of the text, in one new folder, with the interpreter and the commands of this
environment. What a block may say, and what may stand in a comment on a line before it:

    ```python                     a program of its own, which must end without an error; it may `await` at the top level
    <!-- continues -->            the block and the Python block before it are one program
    <!-- file: app.py -->         the block, of any language, is written to that file; a Python file is then imported
    ```console                    `$ ` begins a command and `> ` continues it. It must succeed and print the lines that follow, if
                                  any do: a line `...` stands for any lines, `...` inside a line for any text. A command that
                                  ends in ` &` runs until the document ends, `kill $!` kills it. `cd` and `export` last.
    <!-- eventually -->           each command of the session is repeated until it succeeds and prints those lines
    <!-- not run: the reason -->  the block is left out, and shows as a skipped test

Blocks in other languages are not run.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from repository import ROOT, tracked

DOCUMENTS = {path: ROOT / path for path in tracked("*.md")}
LIMIT_S = 60

# As `python -m asyncio` runs what is typed there, but from a file.
RUN_WITH_AWAIT = """
def run(path):
    import ast, asyncio, sys
    from pathlib import Path
    code = compile(Path(path).read_text(), path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    asyncio.run(eval(code, sys.modules["__main__"].__dict__))
run(__import__("sys").argv[1])
"""


class Block(NamedTuple):
    line: int
    language: str
    note: str
    text: str


def blocks_of(markdown: str) -> Iterator[Block]:
    """The fenced blocks with the note (`<!-- note -->`) that directly precedes them; `line` is that of the opening fence."""
    note, opening = "", None
    begin, body = 0, list[str]()
    for number, line in enumerate(markdown.splitlines(), 1):
        if opening is None:
            if opening := re.fullmatch(r"\s*(`{3,}|~{3,})\s*([\w+-]*).*", line):
                begin, body = number, []
            elif comment := re.fullmatch(r"\s*<!-- (.*) -->\s*", line):
                note = comment[1]
            elif line.strip():
                note = ""
        elif line.strip() == opening[1]:
            yield Block(begin, opening[2], note, textwrap.dedent("\n".join(body) + "\n"))
            note, opening = "", None
        else:
            body.append(line)
    if opening:
        pytest.fail(f"line {begin}: the block has no end", pytrace=False)


def to_run(blocks: Sequence[Block]) -> list[Block]:
    """The blocks that are run, each with what continues it. The lines of a program keep their numbers in the document."""
    found = list[Block]()
    for block in blocks:
        if block.note.startswith("not run: "):
            continue
        if block.note == "continues":
            i = next(i for i in reversed(range(len(found))) if found[i].language == block.language)
            text = found[i].text
            gap = 0 if found[i].note.startswith("file: ") else block.line - text.count("\n")
            found[i] = found[i]._replace(text=text + "\n" * gap + block.text)
        elif block.note.startswith("file: ") or block.language == "console":
            found.append(block)
        elif block.language == "python":
            found.append(block._replace(text="\n" * block.line + block.text))
    return found


def commands_of(console: Block) -> Iterator[tuple[int, str, list[str]]]:
    """Line, command and the lines it should print."""
    for part in re.finditer(r"^\$ (.*\n(?:> .*\n)*)((?:(?!\$ ).*\n)*)", console.text, re.MULTILINE):
        line = console.line + 1 + console.text.count("\n", 0, part.start())
        yield line, part[1].replace("\n> ", "\n").rstrip(), part[2].rstrip().splitlines()


def matches(expected: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether the lines are as expected; `...` stands for any lines or, inside a line, for any text."""
    if not expected:
        return not printed
    if expected[0].strip() == "...":
        return any(matches(expected[1:], printed[i:]) for i in range(len(printed) + 1))
    line = ".*".join(map(re.escape, expected[0].rstrip().split("...")))
    return bool(printed) and bool(re.fullmatch(line, printed[0].rstrip())) and matches(expected[1:], printed[1:])


class Session:
    """The folder in which the blocks of one document run, and the processes they start."""

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.work.mkdir()
        self.shell = folder / "shell"  # what `cd` and `export` have done
        self.shell.touch()
        self.output = folder / "output"
        self.background = list[subprocess.Popen[bytes]]()
        ours = ("CI", "COV", "PYTEST", "PYTHON", "STEPFOLD")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120", "NO_COLOR": "1"}

    def run(self, block: Block) -> None:
        if block.note.startswith("file: "):
            path = self.work / block.note.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            if block.language == "python":
                self._python(block.line, "-c", f"import runpy; runpy.run_path({path.name!r})", cwd=path.parent)
        elif block.language == "python":
            path = self.work / f"line_{block.line}.py"
            path.write_text(block.text)
            self._python(block.line, *(["-c", RUN_WITH_AWAIT] if awaits(block.text) else []), path.name, cwd=self.work)
        else:
            for line, command, expected in commands_of(block):
                self._command(line, command, expected, eventually=block.note == "eventually")

    def close(self) -> None:
        for process in self.background:
            _kill(process)

    def _python(self, line: int, *arguments: str, cwd: Path) -> None:
        status, printed = self._finish([sys.executable, *arguments], cwd)
        if status != 0:
            pytest.fail(f"line {line}: the Python block ends with {status}\n{printed}", pytrace=False)

    def _command(self, line: int, command: str, expected: Sequence[str], *, eventually: bool) -> None:
        if command.endswith(" &"):
            script = f'. "$0"\n{command[:-2]}'
            self.background.append(self._start(["bash", "-c", script, str(self.shell)], self.work, subprocess.DEVNULL))
            return
        script = f'. "$0"\n{command}\nstatus=$?\n{{ export -p; echo cd "\'$PWD\'"; }} > "$0"\nexit $status'
        if self.background:  # the whole group: between it and the command there may be a shell
            script = script.replace("$!", f"-- -{self.background[-1].pid}")
        until = time.monotonic() + LIMIT_S
        while True:
            status, printed = self._finish(["bash", "-c", script, str(self.shell)], self.work)
            as_printed = status == 0 and (not expected or matches(expected, printed.rstrip().splitlines()))
            if as_printed or not eventually or time.monotonic() > until:
                break
            time.sleep(0.2)
        if status != 0:
            pytest.fail(f"line {line}: `{command}` ends with {status}\n{printed}", pytrace=False)
        if not as_printed:
            pytest.fail(f"line {line}: `{command}` printed\n{printed}", pytrace=False)

    def _start(self, command: Sequence[str], cwd: Path, output: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            cwd=cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _finish(self, command: Sequence[str], cwd: Path) -> tuple[int | None, str]:
        with self.output.open("wb") as output:  # a file: a pipe would wait for what the command has left running
            process = self._start(command, cwd, output)
            try:
                process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                output.write(f"\n(did not end within {LIMIT_S} seconds)\n".encode())
            finally:
                status = process.poll()
                _kill(process)
        return status, self.output.read_text(errors="replace")


def awaits(code: str) -> bool:
    try:
        compile(code, "block", "exec")
    except SyntaxError:
        return True
    return False


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_text(markdown: str, folder: Path) -> None:
    session = Session(folder)
    try:
        for block in to_run(list(blocks_of(markdown))):
            session.run(block)
    finally:
        session.close()


def read(path: Path) -> list[Block]:
    return list(blocks_of(path.read_text()))


@pytest.mark.parametrize("document", [name for name, path in DOCUMENTS.items() if to_run(read(path))])
def test_document_runs_as_printed(document: str, tmp_path: Path) -> None:
    run_text(DOCUMENTS[document].read_text(), tmp_path)


def slug(heading: str) -> str:
    """The anchor that a heading has where Markdown is shown."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower()).replace(" ", "-")


def links_of(path: Path) -> Iterator[str]:
    """The targets of a document's links into this repository."""
    prose = re.sub(r"^(`{3,}).*?^\1|`[^`\n]*`", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from (target for target in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in target)


def test_links_lead_somewhere() -> None:
    broken = list[str]()
    for name, path in DOCUMENTS.items():
        for link in links_of(path):
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            headings = (
                re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if target.suffix == ".md" and target.exists() else []
            )
            if not target.exists() or (anchor and anchor not in map(slug, headings)):
                broken.append(f"{name}: {link}")
    assert not broken


def test_the_readme_leads_to_every_document() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in links_of(DOCUMENTS["README.md"])}
    assert [name for name, path in DOCUMENTS.items() if name.startswith("docs/") and path.resolve() not in linked] == []


NOT_RUN = {
    f"{name}:{block.line}": block.note
    for name, path in DOCUMENTS.items()
    for block in read(path)
    if block.note.startswith("not run: ")
}


@pytest.mark.parametrize("place", NOT_RUN)
def test_block_is_left_out(place: str) -> None:
    pytest.skip(NOT_RUN[place])


SAMPLE = """
```python
import asyncio
x = 1
```
Text.
<!-- continues -->
```python
await asyncio.sleep(0)
assert x == 1
```
<!-- file: pkg/app.py -->
```python
name = "app"
```
<!-- not run: it is wrong -->
```python
raise SystemExit(1)
```
   ```console
   $ export WHO=you
   $ mkfifo pipe
   $ echo begun >pipe && sleep 1000 &
   $ cat pipe
   begun
   $ cat pkg/app.py
   name = ...
   $ cd pkg; python -c "
   > import app
   > print('a', 'b', app.name, sep='\\n')"
   a
   ...
   app
   $ echo "$WHO in ${PWD##*/}"
   you in pkg
   ```
<!-- eventually -->
```console
$ echo more >>tries; wc -l <tries
...3
```
```console
$ sleep 1000; echo "it was killed" &
$ kill -9 $!
```
"""


def test_every_convention_works(tmp_path: Path) -> None:
    run_text(SAMPLE, tmp_path)


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```python\n1 / 0\n```", r"line 1: .*[\s\S]*line 2, in <module>[\s\S]*ZeroDivisionError"),
        ("\n```python\nawait nothing\n```", r"line 2: .*[\s\S]*line 3, in <module>[\s\S]*NameError"),
        ("<!-- file: app.py -->\n```python\nimport nowhere\n```", "nowhere"),
        ("```console\n$ true\n$ exit 3\n```", "line 3: `exit 3` ends with 3"),
        ("```console\n$ echo yes\nno\n```", "line 2: `echo yes` printed\nyes"),
        ("```console\n$ echo yes; echo no\nyes\n```", "yes\nno"),
        ("```python\n", "line 1: the block has no end"),
    ],
)
def test_what_is_wrong_is_found(tmp_path: Path, block: str, complaint: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=complaint):
        run_text(block, tmp_path)
