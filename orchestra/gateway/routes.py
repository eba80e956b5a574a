"""How a route is added, in one place, which leaves Sanic nothing to find out for each when the app starts.

Sanic reads the source of a handler for the format of its errors, which `app.ProblemHandler` decides. Its extension adds
HEAD and OPTIONS to routes of an app that has started, which renders and compiles the app's signals anew for each: three
quarters of a start. Here HEAD comes with GET, and OPTIONS is answered where no route is found for it.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from sanic import HTTPResponse, Request, Sanic
from sanic.exceptions import MethodNotAllowed, NotFound

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

Handler = Callable[..., Coroutine[Any, Any, HTTPResponse | None]]


def add_route(app: Sanic[Any, Any], handler: Handler, path: str, method: str = "GET") -> None:
    """Let `handler` answer `method` at `path`; GET also as HEAD, of which Sanic leaves the body out.

    Source: RFC 9110, section 9.3.2.
    """
    methods = ("GET", "HEAD") if method == "GET" else (method,)
    app.add_route(handler, path, methods, error_format="json")


def allowed_methods(request: Request) -> str:
    """Return the methods that the request's path has, as the header `Allow` lists them."""
    return ", ".join(method for method in METHODS if method == "OPTIONS" or _is_found(request, method))


def _is_found(request: Request, method: str) -> bool:
    try:
        request.app.router.get(request.path, method, request.headers.getone("host", None))
    except (NotFound, MethodNotAllowed):
        return False
    return True
