"""The page at `/`: two models of the list side by side, for people. Three files, and nothing from anywhere else.

It asks the same routes as every client, with `steps` (telling.py). What models write enters it as text only, and its
policy lets no script run, no style apply and no address be asked but this server's own.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from blackbox_proxy.screen.styles import token_styles

HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_routes() -> list[Route]:
    """`/`, `/page.css` and `/page.js`."""
    return [
        _file("/", "text/html", _read("page.html")),
        _file("/page.css", "text/css", token_styles() + _read("page.css")),
        _file("/page.js", "text/javascript", _read("page.js")),
    ]


def _file(path: str, kind: str, text: str) -> Route:
    async def answer(request: Request) -> Response:
        return Response(text, media_type=kind, headers=HEADERS)

    return Route(path, answer)


def _read(name: str) -> str:
    return (files("blackbox_proxy.gateway") / name).read_text(encoding="utf-8")
