"""The page that asks a browser for a token."""

from __future__ import annotations

import html
from urllib.parse import quote

from starlette.responses import HTMLResponse, Response


def login_form(base: str, next_path: str, status: int = 200, said: str = "") -> Response:
    """The page that asks for a token. `base`: the path below which the dashboard is mounted, such as "/admin"; mostly empty."""
    value = html.escape(local_path(base, next_path), quote=True)
    action = html.escape(f"{base}/login", quote=True)
    page = f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>Log in · stepfold</title>
<main>
<h1>Log in</h1>
<p role="alert">{html.escape(said)}</p>
<form method="post" action="{action}">
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


def local_path(base: str, path: str) -> str:
    """The path if it leads to this server, else that of the first page."""
    local = path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
    return quote(path, safe="/?&=%:@+,;~-._") if local else f"{base}/"
