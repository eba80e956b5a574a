"""The web chat at `/`: plain files that ship with the package, under headers that let the page do no more than it does.

A browser asks each time whether a file is still what it has: pages are small, and an upgrade is seen at once.
"""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.errors import NotFound
from orchestra.gateway.routes import add_route

FOLDER = Path(__file__).parent / "web"
PAGE = "index.html"

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",  # also WebSockets of the same host (CSP 3, section 6.7.2.8)
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class WebFile(NamedTuple):
    """One file of the page, as it is sent."""

    content: bytes
    kind: str
    etag: str


def read_files(folder: Path) -> Mapping[str, WebFile]:
    """Return the page's files by their names."""
    return {path.name: _read(path) for path in sorted(folder.iterdir()) if path.suffix in KINDS}


def _read(path: Path) -> WebFile:
    content = path.read_bytes()
    return WebFile(content, KINDS[path.suffix], f'"{sha256(content).hexdigest()[:32]}"')


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the page and its files to `app`."""
    files = read_files(FOLDER)

    @openapi.exclude()
    async def web_page(request: Request) -> HTTPResponse:
        return _answer(request, files[PAGE])

    @openapi.exclude()
    async def web_file(request: Request, name: str) -> HTTPResponse:
        if name not in files:
            raise NotFound("the page has no such file: load the page again, at /")
        return _answer(request, files[name])

    add_route(app, web_page, "/")
    add_route(app, web_file, "/web/<name:str>")


def _answer(request: Request, file: WebFile) -> HTTPResponse:
    """Return the file, or that it has not changed since the browser got it."""
    headers = {**HEADERS, "ETag": file.etag}
    if file.etag in _etags(request):
        return HTTPResponse(status=304, headers=headers)
    return HTTPResponse(file.content, 200, headers, file.kind)


def _etags(request: Request) -> tuple[str, ...]:
    """Return the entity tags the browser has; proxies that compress make strong ones weak."""
    return tuple(each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(","))
