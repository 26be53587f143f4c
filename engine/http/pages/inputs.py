"""The form of an input: makes controls from the JSON Schema of its model, and JSON from what people type into them. Pure.

The name of a control is the JSON pointer of its value, so that an error finds its control. A value that no control fits is typed
as JSON: a union, a mapping, anything that is nested deeper than `MOST_LEVELS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, Literal, cast

import orjson

ROOT = "/input"
MOST_LEVELS = 4
MOST_ITEMS = 200
MOST_CONTROLS = 400
"""A model that would need more controls is typed as JSON, such as one that contains itself many times."""
GIVEN, COUNT = "given:", "n:"
"""Prefixes of further fields: `given:` and an object's name is a checkbox that says whether there is a value, `n:` and a list's
name is the number of its items."""

Kind = Literal["text", "number", "decimal", "check", "choice", "date", "time", "moment", "secret", "json", "object", "list"]
Schema = dict[str, Any]
Typed = Mapping[str, str]
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_FORMATS: dict[str, Kind] = {"date": "date", "time": "time", "date-time": "moment", "password": "secret"}
_EXAMPLES = {"duration": "PT1H30M", "uuid": "00000000-0000-0000-0000-000000000000", "email": "ada@example.org"}
_NONE = object()


@dataclass(slots=True)
class Control:
    """One control. `name`: the JSON pointer of its value; `value`: as the page shows it; `needed`: the model has no default for
    it; `nullable`: it may be null; `empty`: the JSON that stands for an empty control (None: the value is left out)."""

    name: str
    label: str
    kind: Kind
    hint: str = ""
    value: str = ""
    needed: bool = True
    nullable: bool = False
    empty: str | None = None
    present: bool | None = None
    options: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    example: str = ""
    limits: dict[str, str] = field(default_factory=dict[str, str])
    inner: list[Control] = field(default_factory=list["Control"])
    errors: list[str] = field(default_factory=list[str])

    def all(self) -> Iterator[Control]:
        yield self
        for one in self.inner:
            yield from one.all()


def form_of(schema: Schema, typed: Typed | None = None, zone: tzinfo = UTC) -> Control:
    """The control of a whole input. `typed`: the fields that a browser has sent, by name; without it the defaults of the
    model."""
    made = _Maker(schema.get("$defs", {}), typed, zone)
    return made.control({key: value for key, value in schema.items() if key != "$defs"}, ROOT, "input", needed=True)


class _Maker:
    """Makes controls from the nodes of one schema."""

    def __init__(self, defs: Mapping[str, Schema], typed: Typed | None, zone: tzinfo) -> None:
        self.defs = defs
        self.typed = typed
        self.zone = zone
        self.left = MOST_CONTROLS

    def control(
        self, node: Schema, name: str, label: str, *, needed: bool, level: int = 0, default: object = _NONE, item: bool = False
    ) -> Control:
        """The control of a node. `default`: from the value that contains it; without one, the node's own default."""
        self.left -= 1
        node, nullable = self._plain(node)
        default = node.get("default", _NONE) if default is _NONE else default
        made = Control(name, label, self._kind(node, level), str(node.get("description", "")), needed=needed, nullable=nullable)
        if nullable and needed:
            made.empty = "null"
        made.example = _EXAMPLES.get(node.get("format", ""), "") or _first_example(node)
        if made.kind == "object":
            self._fill_object(made, node, level, default)
        elif made.kind == "list":
            self._fill_list(made, node, level, default)
        else:
            self._fill(made, node, default, item=item)
        return made

    def _plain(self, node: Schema) -> tuple[Schema, bool]:
        """The node with its references resolved, and without null as one of its alternatives."""
        for _ in range(20):
            if "$ref" in node:
                ref = self.defs.get(str(node["$ref"]).removeprefix("#/$defs/"), {})
                node = ref | {key: value for key, value in node.items() if key != "$ref"}
            elif len(node.get("allOf", ())) == 1:
                node = node["allOf"][0] | {key: value for key, value in node.items() if key != "allOf"}
            else:
                break
        choices: list[Schema] = node.get("anyOf") or node.get("oneOf") or []
        left = [one for one in choices if one.get("type") != "null"]
        if len(left) == len(choices):
            return node, False
        around = {key: value for key, value in node.items() if key not in ("anyOf", "oneOf")}
        if len(left) == 1:
            inner, _ = self._plain(left[0])
            return inner | around, True
        return around | {"anyOf": left}, True

    def _kind(self, node: Schema, level: int) -> Kind:
        opens = level < MOST_LEVELS and self.left > 0
        if "enum" in node or "const" in node:
            return "choice"
        choices = node.get("anyOf", ())
        if len(choices) == 2 and [one.get("type") for one in choices] == ["number", "string"]:
            return "decimal"  # pydantic describes a Decimal like this; it keeps all digits of a text
        match node.get("type"):
            case "boolean":
                return "check"
            case "integer" | "number":
                return "number"
            case "string":
                return _FORMATS.get(node.get("format", ""), "text")
            case "array" if (
                isinstance(node.get("items"), dict) and "prefixItems" not in node and level < MOST_LEVELS and self.left > 0
            ):
                return "list"
            case "object" if node.get("properties") and opens:
                return "object"
            case _:
                return "json"

    def _fill(self, made: Control, node: Schema, default: object, *, item: bool) -> None:
        if made.kind == "choice":
            choices = node["enum"] if "enum" in node else [node["const"]]
            made.options = [(orjson.dumps(one).decode(), _words(one)) for one in choices]
            if "const" in node and default is _NONE:
                default = node["const"]
        elif made.kind == "check" and made.nullable:
            made.kind, made.options = "choice", [("true", "yes"), ("false", "no")]
        if made.kind in ("text", "secret") and not made.nullable and (made.needed or isinstance(default, str)):
            made.empty = '""'
        elif item and made.empty is None:
            made.empty = "null"
        made.limits = _limits(node)
        if self.typed is None:
            made.value = "" if default is _NONE or default is None else self._said(made.kind, default)
        else:
            made.value = self.typed.get(made.name, "").replace("\r\n", "\n")

    def _said(self, kind: Kind, default: object) -> str:
        """A default as the control shows it."""
        match kind:
            case "text" | "secret" | "date" | "time" | "decimal" if isinstance(default, str):
                return default
            case "moment" if isinstance(default, str):
                return _in_zone(default, self.zone)
            case "json":
                return orjson.dumps(default, option=orjson.OPT_INDENT_2).decode()
            case _:
                return orjson.dumps(default).decode()

    def _fill_object(self, made: Control, node: Schema, level: int, default: object) -> None:
        needed = set(node.get("required", ()))
        inside = cast("dict[str, Any]", default) if isinstance(default, dict) else {}
        for key, inner in node["properties"].items():
            made.inner.append(
                self.control(
                    inner,
                    f"{made.name}/{_escaped(key)}",
                    key,
                    needed=key in needed,
                    level=level + 1,
                    default=inside.get(key, _NONE),
                )
            )
        if made.nullable or not made.needed:
            if self.typed is None:
                made.present = isinstance(default, dict)
            else:
                made.present = GIVEN + made.name in self.typed

    def _fill_list(self, made: Control, node: Schema, level: int, default: object) -> None:
        known = cast("list[Any]", default) if isinstance(default, list) else []
        count = len(known)
        if self.typed is None:
            count = max(count, 1 if made.needed else 0, int(node.get("minItems", 0)))
        else:
            count = _count(self.typed, made.name)
        if not (made.nullable or (not made.needed and default is None)):
            made.empty = "[]"
        for at in range(min(count, MOST_ITEMS)):
            made.inner.append(
                self.control(
                    node["items"],
                    f"{made.name}/{at}",
                    f"{made.label} {at + 1}",
                    needed=True,
                    level=level + 1,
                    default=known[at] if at < len(known) else _NONE,
                    item=True,
                )
            )


def json_of(control: Control, zone: tzinfo = UTC) -> str | None:
    """The JSON of the control's value, with all digits of numbers; None if the value is left out. Adds to the control's `errors`
    if a text is not JSON."""
    match control.kind:
        case "object":
            if control.present is False:
                return control.empty
            parts = [(one.name.rpartition("/")[2], json_of(one, zone)) for one in control.inner]
            return "{" + ", ".join(f"{_text(_unescaped(key))}: {text}" for key, text in parts if text is not None) + "}"
        case "list":
            items = [json_of(one, zone) for one in control.inner]
            return "[" + ", ".join(text or "null" for text in items) + "]" if items else control.empty
        case "check":
            return "true" if control.value == "true" else "false"
        case _ if not control.value or (control.kind not in ("text", "secret") and not control.value.strip()):
            return control.empty
        case "choice":
            known = [value for value, _ in control.options]
            return control.value if control.value in known else _text(control.value)
        case "number":
            text = control.value.strip()
            return text if _NUMBER.fullmatch(text) else _text(text)
        case "moment":
            return _text(_with_offset(control.value, zone))
        case "json":
            try:
                orjson.loads(control.value)
            except orjson.JSONDecodeError as error:
                control.errors.append(f'this is not JSON: {error}. A text needs its quotes: "text"')
            return control.value
        case _:
            return _text(control.value)


def changed(typed: Typed, do: str) -> tuple[dict[str, str], str]:
    """The fields after a button has added an item to a list or dropped one, and the name of the item to focus."""
    what, _, name = do.partition(":")
    if what == "add":
        count = _count(typed, name)
        return {**typed, COUNT + name: str(min(count + 1, MOST_ITEMS))}, f"{name}/{count}"
    name, _, at_text = name.rpartition("/")
    if what != "drop" or not at_text.isascii() or not at_text.isdecimal():
        return dict(typed), ""
    dropped, found = int(at_text[:9]), dict[str, str]()
    of_item = re.compile(rf"((?:{GIVEN}|{COUNT})?{re.escape(name)}/)([0-9]{{1,9}})((?:/.*)?)", re.DOTALL)
    for key, value in typed.items():
        match = of_item.fullmatch(key)
        at = -1 if match is None else int(match[2])
        if match is None or at < dropped:
            found[key] = value
        elif at > dropped:
            found[f"{match[1]}{at - 1}{match[3]}"] = value
    count = max(_count(typed, name) - 1, 0)
    return {**found, COUNT + name: str(count)}, f"{name}/{max(min(dropped, count - 1), 0)}"


def _count(typed: Typed, name: str) -> int:
    """How many items a list had in the page."""
    text = typed.get(COUNT + name, "0")
    return int(text[:9]) if text.isascii() and text.isdecimal() else 0


def put_errors(root: Control, places: Iterable[Mapping[str, str]]) -> list[str]:
    """Add each error to the control of its pointer, or to the nearest one that contains it. Returns the errors of the whole
    input."""
    controls = {control.name: control for control in root.all()}
    of_all: list[str] = []
    for place in places:
        pointer, said = place["pointer"], place["detail"]
        name = pointer
        while name and name not in controls:
            name = name.rpartition("/")[0]
        rest = pointer[len(name) :].lstrip("/")
        if name in controls and (name != ROOT or controls[name].kind not in ("object", "list")):
            controls[name].errors.append(f"{rest}: {said}" if rest and controls[name].kind == "json" else said)
        else:
            of_all.append(f"{rest}: {said}" if rest else said)
    return of_all


def _limits(node: Schema) -> dict[str, str]:
    """The limits that browsers check while people type. The model checks them all later."""
    return {"maxlength": str(node["maxLength"])} if isinstance(node.get("maxLength"), int) else {}


def _first_example(node: Schema) -> str:
    examples = node.get("examples")
    return _words(cast("list[Any]", examples)[0]) if isinstance(examples, list) and examples else ""


def _words(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _text(text: str) -> str:
    return orjson.dumps(text).decode()


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


def _unescaped(key: str) -> str:
    return key.replace("~1", "/").replace("~0", "~")


def _in_zone(text: str, zone: tzinfo) -> str:
    """A time as a browser's control for local times expects it; another text stays as it is."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    at = at if at.tzinfo is None else at.astimezone(zone).replace(tzinfo=None)
    return at.isoformat(timespec="seconds" if not at.microsecond else "milliseconds")


def _with_offset(text: str, zone: tzinfo) -> str:
    """A local time with its offset in the zone; another text stays as it is."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if at.tzinfo is not None else at.replace(tzinfo=zone).isoformat()
