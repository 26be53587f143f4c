"""The forms of a page, as a browser would send them."""

from __future__ import annotations

from html.parser import HTMLParser


class _Forms(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.forms: list[dict[str, str]] = []
        self._inside = False
        self._area: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._inside = True
            self.forms.append({"action": found.get("action", "")})
        elif self._inside and tag in ("input", "textarea") and "name" in found:
            self.forms[-1][found["name"]] = found.get("value", "")
            self._area = found["name"] if tag == "textarea" else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "form"
        self._area = None if tag == "textarea" else self._area

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self.forms[-1][self._area] += data


def form_with(page: str, **fields: str) -> dict[str, str]:
    """The content of the one form of the page that has these fields, without its address."""
    parser = _Forms()
    parser.feed(page)
    [found] = [form for form in parser.forms if fields.items() <= form.items()]
    del found["action"]
    return {name: value.removeprefix("\n") for name, value in found.items()}
