"""The web chat at `/`: plain files that ship with the package, under headers that let the page do no more than it does.

The page's own files have an address that names what is in all of them together, so a browser keeps them for good and
an upgrade is seen with the next page. While instances of two versions stand side by side, one is asked for files of
the other's; it answers with its own, which nobody keeps.
"""

from collections.abc import Callable, Coroutine, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from sanic import HTTPResponse, Request, Sanic
from sanic_ext import openapi

from orchestra.errors import NotFound

FOLDER = Path(__file__).parent / "web"
PAGE = "index.html"
VERSION = "{version}"
"""What the page has in the addresses of its files, in place of what is in them."""

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = {
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

REVALIDATED = "no-cache"
KEPT = "public, max-age=31536000, immutable"
NOT_KEPT = "no-store"


class WebFile(NamedTuple):
    """One file of the page, as it is sent."""

    content: bytes
    kind: str
    etag: str


def read_files(folder: Path) -> tuple[str, Mapping[str, WebFile]]:
    """Return a name for what is in the page's files, and the files by their names; the page has that name in it."""
    contents = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix in KINDS}
    version = _digest(b"\0".join(name.encode() + b"\0" + content for name, content in contents.items()))
    contents[PAGE] = contents[PAGE].replace(VERSION.encode(), version.encode())
    return version, {
        name: WebFile(content, KINDS[Path(name).suffix], f'"{_digest(content)}"') for name, content in contents.items()
    }


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()[:16]


def add_routes(app: Sanic[Any, Any]) -> None:
    """Add the page and its files to `app`."""
    version, files = read_files(FOLDER)
    app.add_route(_page(files[PAGE]), "/", methods=["GET", "HEAD"])
    app.add_route(_part(version, files), "/web/<version:str>/<name:str>", methods=["GET", "HEAD"])


def _page(page: WebFile) -> Callable[[Request], Coroutine[Any, Any, HTTPResponse]]:
    @openapi.exclude()
    async def web_page(request: Request) -> HTTPResponse:
        return _answer(request, page, REVALIDATED)

    return web_page


def _part(
    version: str, files: Mapping[str, WebFile]
) -> Callable[[Request, str, str], Coroutine[Any, Any, HTTPResponse]]:
    @openapi.exclude()
    async def web_file(request: Request, version: str, name: str, current: str = version) -> HTTPResponse:
        if name not in files or name == PAGE:
            raise NotFound("the page has no such file: load it again at /")
        return _answer(request, files[name], KEPT if version == current else NOT_KEPT)

    return web_file


def _answer(request: Request, file: WebFile, cache: str) -> HTTPResponse:
    """Return the file, or that it has not changed since the browser got it."""
    headers = {**POLICY, "Cache-Control": cache, "ETag": file.etag}
    if cache != NOT_KEPT and file.etag in _etags(request):
        return HTTPResponse(status=304, headers=headers)
    return HTTPResponse(file.content, 200, headers, file.kind)


def _etags(request: Request) -> tuple[str, ...]:
    """Return the entity tags the browser has; proxies that compress make strong ones weak."""
    return tuple(each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(","))
