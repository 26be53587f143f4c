"""The page that asks a browser for a token."""

from __future__ import annotations

import html
from urllib.parse import quote

from starlette.responses import HTMLResponse, Response


def login_form(next_path: str, status: int = 200, said: str = "") -> Response:
    """The page that asks for a token."""
    value = html.escape(local_path(next_path), quote=True)
    page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Log in · stepfold</title>
<main>
<h1>Log in</h1>
<p role="alert">{html.escape(said)}</p>
<form method="post" action="/login">
<input type="hidden" name="next" value="{value}">
<input autocomplete="username" hidden>
<label>Token <input type="password" name="token" autocomplete="current-password" required autofocus></label>
<button>Log in</button>
</form>
<p>An admin makes tokens: <code>stepfold token create NAME --role view</code></p>
</main>
</html>
"""
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return HTMLResponse(page, status, headers)


def local_path(path: str) -> str:
    """The path if it leads to this server, else "/"."""
    local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return quote(path, safe="/?&=%:@+,;~-._") if local else "/"
