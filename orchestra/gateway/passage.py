"""One request's way through the gateway: its ids, the error that it ended with, and the event that tells of its end."""

import asyncio
import traceback
from collections.abc import Mapping

from sanic import Request

from orchestra.errors import OrchestraError, unforeseen
from orchestra.events import RequestFinished, UnexpectedError
from orchestra.gateway.problems import translated
from orchestra.gateway.tracing import correlation_id_of, trace_of
from orchestra.telemetry import correlation


def identify(request: Request) -> None:
    """Give the request its ids, once: those of the caller where they are well formed, else new ones."""
    if hasattr(request.ctx, "trace"):
        return
    entropy = request.app.ctx.service.ports.entropy
    request.ctx.started = asyncio.get_running_loop().time()
    request.ctx.correlation_id = correlation_id_of(request.headers, entropy)
    correlation.set(request.ctx.correlation_id)  # for lines that libraries log
    request.ctx.trace = trace_of(request.headers, entropy)
    request.ctx.streams = False


def error_of(request: Request, raised: BaseException) -> OrchestraError:
    """Return what a client may know of `raised`; a defect goes to the hook with its traceback."""
    error = translated(raised)
    if error is None:
        at = asyncio.get_running_loop().time()
        text = "".join(traceback.format_exception(raised))
        request.app.ctx.service.ports.hook(UnexpectedError(at, request.ctx.correlation_id, "gateway", text))
        error = unforeseen()
    return error


async def answer_head(request: Request, headers: Mapping[str, str], content_type: str) -> None:
    """Answer HEAD where GET streams: no length is said, which nobody knows before the body's end (RFC 9110, 8.6)."""
    response = await request.respond(headers=dict(headers), content_type=content_type)
    await response.send(b"")
    await response.send(b"", True)


def tell_finished(request: Request, status: int) -> None:
    """Tell the hook that the request was answered."""
    now = asyncio.get_running_loop().time()
    request.app.ctx.service.ports.hook(
        RequestFinished(
            at=now,
            correlation_id=request.ctx.correlation_id,
            method=request.method or "",
            route=f"/{request.route.path}" if request.route else "",
            status=status,
            seconds=now - request.ctx.started,
        )
    )
